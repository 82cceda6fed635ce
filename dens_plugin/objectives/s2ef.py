"""Structure to energy and forces (S2EF), plain: the baseline that every other objective is compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dens_plugin.objectives.base import Objective

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import StructureRandom


@dataclass(frozen=True, kw_only=True)
class S2EF(Objective):
    """The labels alone, without any corruption: energies, forces, or whatever else the config trains on."""

    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """A shallow copy."""
        return copy.copy(batch)
