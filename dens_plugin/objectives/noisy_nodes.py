"""Noisy Nodes (Godwin et al., arXiv:2106.07971): a little noise on all atoms, and its prediction beside the labels.

As the TorchMD-NET line uses it: on QM9 one pass, in which the labels are asked of the noisy structure; on MD17 two, in
which the clean structure keeps its labels and a noisy copy is asked for the noise. Nothing is encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from dens_plugin.fields import NOISE, Output, Rows, free_atoms, md_structures
from dens_plugin.objectives.base import Errors, Objective, Outputs
from dens_plugin.objectives.coefficient import linearly, require_coefficient
from dens_plugin.objectives.corruption import moved, noise_errors, noise_scale, record_of, with_copies
from dens_plugin.objectives.noise import FixedSigma, Sigma

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import StructureRandom


@dataclass(frozen=True, kw_only=True)
class NoisyNodes(Objective):
    """Position noise on all atoms that may move. Defaults are those of QM9.

    Args:
        sigma: Å, the standard deviation of the noise, one or a ladder: 0.02, or 0.005 in the TorchMD-NET line.
        coefficient: weight of the noise in the loss.
        decay_to: the share of the coefficient that is left at the end of training, linearly.
        keep_labels: two passes: the clean structure has the labels, a copy of it the noise.

    Raises:
        ValueError: for an impossible setting.
    """

    sigma: Sigma = field(default_factory=lambda: FixedSigma(0.02))
    coefficient: float = 0.1
    decay_to: float = 1.0
    keep_labels: bool = False

    outputs: ClassVar[tuple[Output, ...]] = (Output(NOISE, "atom", 3, "Å", "squared_norm"),)

    def __post_init__(self) -> None:
        require_coefficient(self.coefficient, self.decay_to)

    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """All structures with noise, or clean ones followed by noisy copies."""
        draws = rng.draws(batch)
        mask, normal, sigma = free_atoms(batch), draws.normal, self.sigma.sample(draws.level)
        mask = mask & ~md_structures(batch)[batch.batch]
        if self.keep_labels:
            batch = with_copies(batch, torch.ones_like(sigma, dtype=torch.bool))
            mask = torch.cat([torch.zeros_like(mask), mask])
            normal, sigma = normal.repeat(2, 1), sigma.repeat(2)
        return moved(batch, mask, normal=normal, sigma=sigma)

    def rows(self, batch: Batch) -> dict[str, Rows]:
        """Labels of all structures, or of the clean half; noise of all atoms that moved."""
        first_copy = batch.num_graphs // 2 if self.keep_labels else batch.num_graphs
        has_labels = torch.arange(batch.num_graphs, device=batch.pos.device) < first_copy
        atoms = self.counted_atoms(batch) & has_labels[batch.batch]
        return self.label_rows(batch, structures=has_labels, atoms=atoms) | {NOISE: Rows.mean(record_of(batch).mask)}

    def targets(self, batch: Batch) -> Outputs:
        """Noise over its scale, dimensionless."""
        return {NOISE: record_of(batch).noise / noise_scale(batch, self.sigma)}

    def coefficients(self, progress: float) -> dict[str, float]:
        """The weight after a share ``progress`` of the training."""
        return {NOISE: linearly(self.coefficient, self.decay_to, progress)}

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Errors]:
        """The noise (Å)."""
        return {"noise_mae": noise_errors(batch, outputs[NOISE] * noise_scale(batch, self.sigma))}
