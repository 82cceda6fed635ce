"""fairchem's neighbours across the faces of cells, the same edges in the same order, without looking everywhere.

fairchem compares all pairs of atoms of a batch in all cells that any of its structures needs. Here each structure is
compared, by fairchem's arithmetic, in those cells alone in which something of it can be within the cutoff: slabs reach
no neighbour above their vacuum, and small cells beside long ones look no further than they must. What is left is handed
to fairchem's function for the limit of neighbours, ties included, for the batch as a whole as fairchem does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from fairchem.core.common.utils import get_max_neighbors_mask

if TYPE_CHECKING:
    from torch_geometric.data import Batch

_SAME_ATOM = 0.0001  # Å², up to which fairchem takes two atoms for one
_SAFE = 0.01  # Å, far above what rounding moves a distance by


class Pairs(NamedTuple):
    """Atoms within the cutoff of each other, sorted by centre, neighbour and cell.

    Attributes:
        centre: (E,).
        neighbour: (E,).
        cell: (E, 3) by how many cells the neighbour is moved.
        squared: (E,) Å², the distance.
    """

    centre: torch.Tensor
    neighbour: torch.Tensor
    cell: torch.Tensor
    squared: torch.Tensor


def periodic_edges(
    batch: Batch, cutoff: float, max_neighbors: int, *, strictly: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Edges (2, E), cell offsets (E, 3) and edges per structure (B,), as fairchem's ``radius_graph_pbc``.

    Args:
        batch: with ``pos`` (N, 3) and ``cell`` (B, 3, 3) in Å, and ``pbc`` (B, 3) where not all is periodic.
        cutoff: Å.
        max_neighbors: of an atom.
        strictly: whether ties at this limit are cut.

    Returns:
        None for structures of different boundaries or flat cells, about which fairchem has something to say.
    """
    periodic = _periodic(batch)
    if periodic is None:
        return None
    repeats = list(_repeats(batch.cell, cutoff, periodic))
    if not all(map(math.isfinite, repeats)):
        return None
    counts = [int(most) for most in repeats]
    cells = torch.cartesian_prod(*(torch.arange(-most, most + 1, dtype=torch.float) for most in counts))  # (K, 3)
    parts = list(_pairs(batch, cells, cutoff))
    pairs = Pairs(*(torch.cat(values) for values in zip(*parts, strict=True)))
    mask, neighbors = get_max_neighbors_mask(
        natoms=batch.natoms,
        index=pairs.centre,
        atom_distance=pairs.squared,
        max_num_neighbors_threshold=max_neighbors,
        enforce_max_strictly=strictly,
    )
    return torch.stack([pairs.neighbour[mask], pairs.centre[mask]]), pairs.cell[mask], neighbors


def _periodic(batch: Batch) -> list[bool] | None:
    """Along which of the three vectors structures repeat; None if not all of them do so alike."""
    if "pbc" not in batch:
        return [True, True, True]
    flags = batch.pbc.view(-1, 3).bool()
    return flags[0].tolist() if (flags == flags[0]).all() else None


def _repeats(cell: torch.Tensor, cutoff: float, periodic: list[bool]) -> Iterator[float]:
    """How many cells to look at in each direction: cutoff over distance of the planes, the most of any structure."""
    first, second, third = cell.unbind(dim=1)
    faces = (second, third), (third, first), (first, second)
    normals = [torch.cross(*vectors, dim=-1) for vectors in faces]
    volume = torch.sum(first * normals[0], dim=-1, keepdim=True)
    for normal, repeats in zip(normals, periodic, strict=True):
        yield torch.ceil(cutoff * torch.norm(normal / volume, p=2, dim=-1)).max().item() if repeats else 0.0


def _pairs(batch: Batch, cells: torch.Tensor, cutoff: float) -> Iterator[Pairs]:
    """The pairs of each structure."""
    shape = (batch.num_graphs, -1, -1)
    offsets = torch.bmm(batch.cell.transpose(1, 2), cells.T[None].expand(shape))  # (B, 3, K) Å
    start = 0
    for pos, offset in zip(batch.pos.split(batch.natoms.tolist()), offsets, strict=True):
        if len(pos) == 0:  # a structure without atoms
            continue
        near = _within_reach(pos, offset, cutoff)
        moved = pos[:, :, None] + offset[:, near]  # (n, 3, K')
        squared = torch.sum((pos[:, None, :, None] - moved) ** 2, dim=2)  # (n, n, K')
        within = torch.le(squared, cutoff * cutoff) & torch.gt(squared, _SAME_ATOM)
        centre, neighbour, cell = within.nonzero(as_tuple=True)
        yield Pairs(centre + start, neighbour + start, cells[near][cell], squared[within])
        start += len(pos)


def _within_reach(pos: torch.Tensor, offset: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Indices of the offsets (3, K) that leave the structure's box within the cutoff of itself."""
    extent = (pos.amax(dim=0) - pos.amin(dim=0))[:, None]
    gap = (offset.abs() - extent).clamp(min=0).norm(dim=0)
    return (~(gap > cutoff + _SAFE)).nonzero().view(-1)  # so that what is no number is left to the comparison of atoms
