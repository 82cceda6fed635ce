"""Denoise pre-training (Wang et al., arXiv:2303.02216): structures without labels, and the noise on all their atoms.

Fine-tuning is another run with ``task.warm_start``, new heads and an objective with labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from typing_extensions import Self

from dens_plugin.fields import ENERGY, FORCES, NOISE, Output, Rows, free_atoms, md_structures
from dens_plugin.objectives.base import Errors, Objective, Outputs
from dens_plugin.objectives.corruption import moved, noise_errors, record_of
from dens_plugin.settings import SETTING

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import StructureRandom


@dataclass(frozen=True, kw_only=True)
class DenoisePretraining(Objective):
    """Equation 7: the squared error of the noise in Å. It uses no labels, whatever the config has of them.

    Args:
        sigma: Å, the standard deviation of the noise on every atom.
        reduction: ``sum`` over the batch, as the authors train, or ``mean`` over its atoms.

    Raises:
        ValueError: for an impossible setting.
    """

    sigma: float = 0.2
    reduction: Literal["sum", "mean"] = "sum"
    labels: tuple[Output, ...] = field(default=(), metadata={SETTING: False})

    outputs: ClassVar[tuple[Output, ...]] = (Output(NOISE, "atom", 3, "Å", "squared_norm"),)

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be a positive, finite number of Å, got {self.sigma}; the paper uses 0.2")

    @classmethod
    def from_settings(
        cls, block: Mapping[str, Any], *, labels: tuple[Output, ...] = (ENERGY, FORCES), free_only: bool = True
    ) -> Self:
        """Build from the keys of a YAML block, without labels."""
        return super().from_settings(block, labels=(), free_only=free_only)

    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """Noise on all atoms that may move."""
        draws = rng.draws(batch)
        mask = free_atoms(batch) & ~md_structures(batch)[batch.batch]
        return moved(batch, mask, normal=draws.normal, sigma=torch.full_like(draws.level, self.sigma))

    def rows(self, batch: Batch) -> dict[str, Rows]:
        """The atoms that moved."""
        mask = record_of(batch).mask
        one = torch.ones((), dtype=torch.long, device=mask.device)
        return {NOISE: Rows.mean(mask) if self.reduction == "mean" else Rows(mask, one)}

    def targets(self, batch: Batch) -> Outputs:
        """The noise in Å."""
        return {NOISE: record_of(batch).noise}

    def coefficients(self, progress: float) -> dict[str, float]:
        """One: there is nothing else in the loss."""
        return {NOISE: 1.0}

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Errors]:
        """The noise (Å)."""
        return {"noise_mae": noise_errors(batch, outputs[NOISE])}
