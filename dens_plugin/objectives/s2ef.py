"""Structure to energy and forces (S2EF), plain: the baseline that every other objective is compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dens_plugin.fields import Rows
from dens_plugin.objectives.base import Objective

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import StructureRandom


@dataclass(frozen=True)
class S2EF(Objective):
    """Structure to energy and forces, without any corruption: the baseline, by the same trainer."""

    free_only: bool = True

    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """A shallow copy."""
        return copy.copy(batch)

    def rows(self, batch: Batch) -> dict[str, Rows]:
        """Energies of all structures, forces of all atoms that may count."""
        atoms = self.counted_atoms(batch)
        structures = torch.ones(batch.num_graphs, dtype=torch.bool, device=batch.pos.device)
        return {"energy": Rows(structures, structures.sum()), "forces": Rows(atoms, atoms.sum())}
