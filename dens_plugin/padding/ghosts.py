"""Ghosts: the atoms, structures and edges that fill a batch up to a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dens_plugin.padding.budgets import Budget

_RADIUS = 0.3  # of the sphere that ghost atoms are on, in cutoffs: all are within one cutoff of each other


@dataclass(frozen=True)
class Ghosts:
    """What fills a batch up: structures of one atom each, and a last one of all other atoms and all edges.

    Attributes:
        sizes: (G,) atoms of each ghost structure.
        first_atom: number of the first ghost atom.
        first_structure: number of the first ghost structure.
        first_edge: number of the first ghost edge.
        num_edges: of ghosts.
    """

    sizes: torch.Tensor
    first_atom: int
    first_structure: int
    first_edge: int
    num_edges: int

    @classmethod
    def between(cls, need: Budget, budget: Budget) -> Ghosts:
        """Those that fill up a batch that takes ``need`` to ``budget``, which holds it."""
        sizes = torch.ones(budget.structures - need.structures, dtype=torch.long)
        sizes[-1] = budget.atoms - need.atoms - len(sizes) + 1
        return cls(sizes, need.atoms, need.structures, need.edges, budget.edges - need.edges)

    @cached_property
    def num_atoms(self) -> int:
        """Ghost atoms in all."""
        return int(self.sizes.sum())

    def structures(self) -> torch.Tensor:
        """(g,) the structure of each ghost atom."""
        numbers = torch.arange(len(self.sizes)) + self.first_structure
        return numbers.repeat_interleave(self.sizes)

    @cached_property
    def edge_index(self) -> torch.Tensor:
        """(2, e) edges between atoms of the last structure, sorted by target and evenly spread over both ends."""
        count = int(self.sizes[-1])
        target = spread(self.num_edges, count)
        number = torch.arange(self.num_edges) - torch.searchsorted(target, target)  # among the edges of its target
        source = (target + 1 + number % (count - 1)) % count
        return torch.stack([source, target]) + self._first_linked

    def positions(self, cutoff: float) -> torch.Tensor:
        """(g, 3) Å, points of a spiral on a sphere, no two of which coincide."""
        number = torch.arange(self.num_atoms, dtype=torch.float64)
        height = 1 - (2 * number + 1) / self.num_atoms
        angle = number * math.pi * (3 - math.sqrt(5)) + 0.5
        width = (1 - height.square()).sqrt()
        return torch.stack([width * angle.cos(), height, width * angle.sin()], dim=1) * (_RADIUS * cutoff)

    def rows_of_atoms(self, count: int) -> torch.Tensor:
        """(count,) atoms of the last structure in ascending order, all about equally often."""
        return spread(count, int(self.sizes[-1])) + self._first_linked

    def rows_of_structures(self, count: int) -> torch.Tensor:
        """(count,) ghost structures in ascending order, all about equally often."""
        return spread(count, len(self.sizes)) + self.first_structure

    def edges_to(self, atoms: torch.Tensor, count: int) -> torch.Tensor:
        """(count,) ghost edges that end at some ghost ``atoms``, in ascending order, all about equally often."""
        found = torch.isin(self.edge_index[1], atoms).nonzero().view(-1) + self.first_edge
        return found[spread(count, len(found))]

    def some_edges(self, count: int) -> torch.Tensor:
        """(count,) ghost edges in ascending order, all about equally often."""
        return spread(count, self.num_edges) + self.first_edge

    @property
    def _first_linked(self) -> int:
        """Number of the last structure's first atom."""
        return self.first_atom + len(self.sizes) - 1


def spread(count: int, places: int) -> torch.Tensor:
    """(count,) numbers below ``places``, ascending from 0, each about equally often."""
    return torch.arange(count) * places // max(count, 1)
