"""What a training loop needs of a trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.base import Errors
    from dens_plugin.training.ledger import BadSteps
    from dens_plugin.training.losses import Loss


class Trainable(Protocol):
    """A trainer; names that fairchem's trainer has are its own."""

    config: dict[str, Any]
    device: torch.device
    seed: int
    step: int
    epoch: float
    model: torch.nn.Module
    train_loader: Any
    val_loader: Any
    train_sampler: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: Any
    ema: Any
    clip_grad_norm: float | None
    accumulate_steps: int
    bad_steps: BadSteps

    @property
    def _unwrapped_model(self) -> torch.nn.Module:
        """Without DDP around it."""

    def _without_ddp(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, `model` is that without DDP."""

    def coefficients(self) -> Mapping[str, float]:
        """Weights in the loss that change during a run."""

    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Outputs of a batch that the loader prepared."""

    def loss(
        self,
        outputs: Mapping[str, torch.Tensor],
        batch: Batch,
        coefficients: Mapping[str, torch.Tensor] | None = None,
    ) -> Loss:
        """The loss that all ranks agree on; with ``coefficients``, of a batch that has the counts of all ranks."""

    def training_errors(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> dict[str, Errors]:
        """Name -> what is worth watching."""

    def report(self, row: Mapping[str, float]) -> None:
        """Print and log means of the last steps."""

    def save(self) -> str | None:
        """Write the newest checkpoint."""

    def save_step(self, *, evaluation_follows: bool = False) -> None:
        """The same, with a note if an evaluation of this step is still to come."""

    def evaluate(self, *, disable_tqdm: bool = True) -> None:
        """Validate, and keep the best weights."""
