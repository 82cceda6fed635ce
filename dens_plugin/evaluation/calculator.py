"""A trained model as an ASE calculator, for relaxations and molecular dynamics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairchem.core import OCPCalculator
from torch import nn

from dens_plugin.compat import load_checkpoint, prepare_host


def load_calculator(path: str | Path, *, cpu: bool | None = None, seed: int = 0) -> OCPCalculator:
    """The ASE calculator of a checkpoint: energy in eV, forces in eV/Å.

    Averaged weights (EMA) are used wherever the checkpoint has them, as in the host's validation.

    Args:
        path: ``best_checkpoint.pt`` or ``checkpoint.pt`` of a run, of this package or of fairchem's EquiformerV2.
        cpu: whether to stay on the CPU; by default only where there is no GPU.
        seed: of the random edge frames, on which predictions depend in their last digits.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, or lacks a config.
    """
    prepare_host()
    checkpoint = load_checkpoint(path)
    if "config" not in checkpoint:
        raise ValueError(f"'{path}' holds weights without a config; convert it with `dens convert` first")
    cpu = not torch.cuda.is_available() if cpu is None else cpu
    calculator = OCPCalculator(
        config_yml=_inference_config(checkpoint["config"]), checkpoint_path=str(path), cpu=cpu, seed=seed
    )
    _use_average(calculator.trainer.model, checkpoint.get("ema"))
    return calculator


def _inference_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config in the form that the host's calculator takes; data paths are of no use to it."""
    config = copy.deepcopy(dict(config))
    train = config.get("dataset") or {}
    train = train[0] if isinstance(train, list) else train
    config["dataset"] = {"train": {**train, "src": None}}
    config["trainer"] = "dens_plugin.DeNSTrainer"
    return config


def _use_average(model: nn.Module, ema: Mapping[str, Sequence[torch.Tensor]] | None) -> None:
    """Copy the averaged parameters, which the host keeps in the model's order, into the model."""
    if ema is None:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trained, ema["shadow_params"], strict=True):
            parameter.copy_(average)
