"""Node denoising on non-equilibrium molecules (NDeM): forces of a structure and of its corrupted copy, and the noise.

For a small displacement the force changes by about -c times the displacement, with the curvature c of the energy
surface (equation 16). Beside the labels of the clean structure, the difference between the main head's forces on it
and an auxiliary head's on the corrupted copy is compared with the noise (equations 17 and 18). The curvature is left to
the auxiliary head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from dens_plugin.fields import CLEAN_ATOMS, Output, Rows, free_atoms, md_structures
from dens_plugin.objectives.base import Objective, Outputs
from dens_plugin.objectives.coefficient import linearly, require_coefficient
from dens_plugin.objectives.corruption import moved, record_of, where, with_copies

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import StructureRandom

AUXILIARY_FORCES = "auxiliary_forces"  # of the corrupted copy, in the unit of the normalised forces


@dataclass(frozen=True, kw_only=True)
class NDeM(Objective):
    """Equations 16 to 18. Defaults are the best of Tables 4 and 5; the paper does not give those marked so.

    Args:
        sigma_low: Å, the smallest standard deviation of the noise; not given.
        sigma_high: Å, the largest.
        sigma_per: whether a standard deviation is drawn for each ``structure`` or one for the ``batch``, as the paper
            says; by batch, the noise of a structure depends on which one comes first in its batch.
        corrupt_ratio: the probability that an atom is moved, None for all atoms; not given.
        coefficient: lambda_NDeM.
        decay_to: the share of the coefficient that is left at the end of training, linearly.
        error: ``squared_norm`` as in equation 17, or ``l2mae``, its root.
        average: over ``structures`` of the mean over their atoms, as in equation 17, or over all ``atoms``.
        counted: whether only ``noised`` atoms enter that mean, or ``all`` of them; not given.

    Raises:
        ValueError: for an impossible setting.
    """

    sigma_low: float = 0.005
    sigma_high: float = 0.05
    sigma_per: Literal["structure", "batch"] = "structure"
    corrupt_ratio: float | None = 0.5
    coefficient: float = 1.0
    decay_to: float = 1.0
    error: Literal["squared_norm", "l2mae"] = "squared_norm"
    average: Literal["structures", "atoms"] = "structures"
    counted: Literal["noised", "all"] = "noised"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_low <= self.sigma_high < float("inf"):
            raise ValueError(
                f"sigma_low and sigma_high must be above 0 and in order, got {self.sigma_low} and {self.sigma_high} Å"
            )
        if self.corrupt_ratio is not None and not 0 < self.corrupt_ratio <= 1:
            raise ValueError(f"corrupt_ratio must be in (0, 1], got {self.corrupt_ratio}; use null for all atoms")
        require_coefficient(self.coefficient, self.decay_to)

    @property
    def outputs(self) -> tuple[Output, ...]:  # type: ignore[override]  # its loss is a setting
        """The forces of the auxiliary head."""
        return (Output(AUXILIARY_FORCES, "atom", 3, "normalised forces", self.error),)

    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """The clean structures, followed by their corrupted copies (equation 11, section 4.3.2)."""
        draws = rng.draws(batch)
        mask = free_atoms(batch) & ~md_structures(batch)[batch.batch]
        if self.corrupt_ratio is not None:
            mask &= draws.atom < self.corrupt_ratio
        level = draws.level if self.sigma_per == "structure" else draws.level[:1].expand_as(draws.level)
        sigma = self.sigma_low + (self.sigma_high - self.sigma_low) * level  # (B,)
        doubled = with_copies(batch, torch.ones_like(level, dtype=torch.bool))
        doubled[CLEAN_ATOMS] = torch.arange(len(mask), device=mask.device).repeat(2)
        return moved(
            doubled,
            torch.cat([torch.zeros_like(mask), mask]),
            normal=draws.normal.repeat(2, 1),
            sigma=sigma.repeat(2),
        )

    def rows(self, batch: Batch) -> dict[str, Rows]:
        """Labels of the clean structures, auxiliary forces of the copies."""
        is_copy = torch.arange(batch.num_graphs, device=batch.pos.device) >= batch.num_graphs // 2  # (2B,)
        of_copy = is_copy[batch.batch]  # (2N,)
        rows = self.label_rows(batch, structures=~is_copy, atoms=self.counted_atoms(batch) & ~of_copy)
        mask = record_of(batch).mask if self.counted == "noised" else self.counted_atoms(batch) & of_copy
        rows[AUXILIARY_FORCES] = Rows.mean(mask)
        if self.average == "structures":
            sizes = torch.zeros(batch.num_graphs, device=mask.device).index_add(0, batch.batch, mask.float())
            weight = 1 / sizes.clamp(min=1)[batch.batch]
            rows[AUXILIARY_FORCES] = Rows(mask, (sizes > 0).sum(), weight=weight)
        return rows

    def targets(self, batch: Batch) -> Outputs:
        """Noise in units of sigma."""
        corruption = record_of(batch)
        return {AUXILIARY_FORCES: corruption.noise / corruption.sigma[batch.batch, None]}

    def predictions(self, outputs: Outputs, batch: Batch) -> Outputs:
        """Forces of the clean structure less those of its copy; without labels of forces the former are zero."""
        of_copies, clean = outputs[AUXILIARY_FORCES], batch[CLEAN_ATOMS]
        is_copy = clean != torch.arange(len(clean), device=clean.device)
        of_clean = outputs["forces"].index_select(0, clean) if "forces" in outputs else torch.zeros_like(of_copies)
        return {AUXILIARY_FORCES: where(is_copy, of_clean - of_copies)}

    def coefficients(self, progress: float) -> dict[str, float]:
        """lambda_NDeM after a share ``progress`` of the training."""
        return {AUXILIARY_FORCES: linearly(self.coefficient, self.decay_to, progress)}
