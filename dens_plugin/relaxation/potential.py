"""A trainer's model as a potential: energies and forces of a batch, in eV and eV/Å, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from fairchem.core.trainers import OCPTrainer
    from torch_geometric.data import Batch


class Potential(Protocol):
    """What a relaxation needs to know of the world; its `predict` is called as fairchem calls a trainer's."""

    device: torch.device

    def predict(self, batch: Batch, per_image: bool = False, disable_tqdm: bool = True) -> Mapping[str, torch.Tensor]:
        """``energy`` (B,) eV and ``forces`` (N, 3) eV/Å."""


class ModelPotential:
    """The model of a trainer, made by `model_potential`.

    Attributes:
        device: of the model.
        seed: of the random edge frames, on which predictions depend in their last digits; the same for every call.
    """

    def __init__(self, trainer: OCPTrainer) -> None:
        self._trainer = trainer
        self.seed = trainer.config["cmd"]["seed"] or 0
        self.device = torch.device(trainer.device)

    @torch.no_grad()
    def predict(self, batch: Batch, per_image: bool = False, disable_tqdm: bool = True) -> dict[str, torch.Tensor]:
        """Denormalised predictions with element references, ``energy`` (B,) eV and ``forces`` (N, 3) eV/Å."""
        trainer = self._trainer
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.autocast("cuda", enabled=trainer.scaler is not None):
            torch.manual_seed(self.seed)
            outputs = trainer._forward(batch)
        energy, forces = (trainer._denorm_preds(name, outputs[name], batch).float() for name in ("energy", "forces"))
        return {"energy": energy.view(-1), "forces": forces.view(-1, 3)}

    def identity(self) -> dict[str, str]:
        """Digests of everything but the seed on which predictions depend, whatever the checkpoint is called."""
        trainer = self._trainer
        parts = {"model": trainer.model, **trainer.normalizers, **trainer.elementrefs}
        weights = hashlib.blake2b(digest_size=16)
        for part, module in parts.items():
            for name, value in sorted(module.state_dict().items()):
                weights.update(f"{part}.{name}".encode())
                weights.update(_bytes(value))
        settings = {"model": trainer.config["model"], "amp": trainer.scaler is not None}
        settings["autocast"] = trainer.config["optim"].get("autocast")
        text = json.dumps(settings, sort_keys=True, default=str)
        return {"weights": weights.hexdigest(), "settings": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


@contextmanager
def model_potential(trainer: OCPTrainer) -> Iterator[ModelPotential]:
    """Within the context, the trainer's model in eval mode, with averaged weights (EMA) and without DDP.

    DDP exchanges buffers in every forward pass, and ranks relax for different numbers of steps. fairchem's own
    `predict` overwrites the raw weights with the averaged ones when it is called for a batch; here they come back.

    Raises:
        ValueError: if the model predicts no energy or no forces.
    """
    missing = [name for name in ("energy", "forces") if name not in trainer.config["outputs"]]
    if missing:
        raise ValueError(f"a relaxation needs energy and forces, and `outputs` of the config has no `{missing[0]}`")
    wrapped, was_training = trainer.model, trainer.model.training
    trainer.model = trainer._unwrapped_model.eval()
    if trainer.ema is not None:
        trainer.ema.store()
        trainer.ema.copy_to()
    try:
        yield ModelPotential(trainer)
    finally:
        if trainer.ema is not None:
            trainer.ema.restore()
        trainer.model = wrapped
        trainer.model.train(was_training)


def _bytes(value: Any) -> bytes:
    if torch.is_tensor(value):
        return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return repr(value).encode()
