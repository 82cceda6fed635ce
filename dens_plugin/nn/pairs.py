"""Edges between atoms, each in both directions, and all pairs of a molecule within a cutoff."""

from __future__ import annotations

from typing import NamedTuple

import torch

_LEAST = 1e-6  # Å, below which two atoms have no direction


class Edges(NamedTuple):
    """The pairs of neighbours in a batch of structures, each of which is an edge in both directions.

    Attributes:
        first: (H,) an atom.
        second: (H,) its neighbour.
        offsets: (B + 1,) where the pairs of each structure begin, and H.
        directions: (H, 3) unit vectors from the second atom to the first.
        distances: (H,) Å.
    """

    first: torch.Tensor
    second: torch.Tensor
    offsets: torch.Tensor
    directions: torch.Tensor
    distances: torch.Tensor

    @classmethod
    def of(cls, pairs: torch.Tensor, vectors: torch.Tensor, batch: torch.Tensor, num_structures: int) -> Edges:
        """Edges of pairs (2, H), those of a structure together, and vectors (H, 3) in Å from second to first.

        Args:
            pairs: first and second atoms.
            vectors: between them.
            batch: (N,) the structure of each atom, ascending.
            num_structures: B.
        """
        first, second = pairs.contiguous()
        distances = vectors.square().sum(dim=-1).clamp(min=_LEAST**2).sqrt()
        structures = torch.arange(num_structures + 1, device=batch.device)
        offsets = torch.searchsorted(batch.index_select(0, second), structures)
        return cls(first, second, offsets, vectors / distances[:, None], distances)


def open_pairs(pos: torch.Tensor, batch: torch.Tensor, natoms: torch.Tensor, cutoff: float) -> torch.Tensor:
    """(2, H) all pairs of a structure's atoms within ``cutoff``, across no face of a cell; the first is the lower.

    Args:
        pos: (N, 3) Å.
        batch: (N,) the structure of each atom, ascending.
        natoms: (B,) atoms of each structure.
        cutoff: Å.
    """
    ends = natoms.cumsum(0)[batch]  # (N,) where an atom's structure ends
    steps = torch.arange(1, max(int(natoms.max()), 1), device=pos.device)
    others = torch.arange(len(pos), device=pos.device)[:, None] + steps  # (N, M)
    exists = others < ends[:, None]
    others = torch.where(exists, others, 0)
    near = exists & ((pos[others] - pos[:, None]).square().sum(dim=-1) <= cutoff * cutoff)
    lower, step = near.nonzero(as_tuple=True)
    return torch.stack([lower, others[lower, step]])


def one_of_two(edge_index: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """(E,) bool, one direction of every pair: edges from a lower atom, or to an atom's own image in an earlier cell.

    A limit of neighbours may keep one direction of a pair alone. Those kept here, and their mirror images, are the
    edges that the Open Catalyst Project's PaiNN works on.

    Args:
        edge_index: (2, E) source and target.
        cells: (E, 3) cells between the two.
    """
    source, target = edge_index
    first, second, third = cells.unbind(dim=1)
    is_earlier = (first < 0) | ((first == 0) & ((second < 0) | ((second == 0) & (third < 0))))
    return (source < target) | ((source == target) & is_earlier)
