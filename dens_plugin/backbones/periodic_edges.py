"""fairchem's neighbours across the faces of cells, the same edges in the same order, without looking everywhere.

fairchem compares all pairs of atoms of a batch in all cells that any of its structures needs. Here each structure is
compared, by fairchem's arithmetic, in those cells alone in which something of it can be within the cutoff: slabs reach
no neighbour above their vacuum, and small cells beside long ones look no further than they must. What is left is handed
to fairchem's function for the limit of neighbours, ties included, for the batch as a whole as fairchem does.

Crystals, slabs and molecules may share a batch: each structure is looked at in cells along its own periodic vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from fairchem.core.common.utils import get_max_neighbors_mask

from dens_plugin.cells import complete_cells
from dens_plugin.compat import periodicity

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
        batch: with ``pos`` (N, 3) and ``cell`` (B, 3, 3) in Å, and ``pbc``, of B * 3 values, where not all is periodic.
        cutoff: Å.
        max_neighbors: of an atom.
        strictly: whether ties at this limit are cut.

    Returns:
        None for cells that are flat along a periodic vector, which `compat.radius_graph_pbc` refuses.
    """
    repeats = _repeats(batch, cutoff)
    if not repeats.isfinite().all():
        return None
    counts = repeats.amax(dim=0).long().tolist()
    cells = torch.cartesian_prod(*(torch.arange(-most, most + 1, dtype=torch.float) for most in counts))  # (K, 3)
    parts = list(_pairs(batch, cells, repeats, cutoff))
    pairs = Pairs(*(torch.cat(values) for values in zip(*parts, strict=True)))
    mask, neighbors = get_max_neighbors_mask(
        natoms=batch.natoms,
        index=pairs.centre,
        atom_distance=pairs.squared,
        max_num_neighbors_threshold=max_neighbors,
        enforce_max_strictly=strictly,
    )
    return torch.stack([pairs.neighbour[mask], pairs.centre[mask]]), pairs.cell[mask], neighbors


def _repeats(batch: Batch, cutoff: float) -> torch.Tensor:
    """(B, 3) how many cells to look at in each direction: cutoff over distance of the planes, none where it is open.

    Structures of one periodicity look as far as any of them needs, as in fairchem; of several, as far as each needs.
    """
    periodic = periodicity(batch)
    first, second, third = complete_cells(batch.cell, periodic).unbind(dim=1)
    faces = (second, third), (third, first), (first, second)
    normals = [torch.cross(*vectors, dim=-1) for vectors in faces]
    volume = torch.sum(first * normals[0], dim=-1, keepdim=True)
    counts = [torch.ceil(cutoff * torch.norm(normal / volume, p=2, dim=-1)) for normal in normals]
    needed = torch.where(periodic, torch.stack(counts, dim=1), 0.0)
    return needed.amax(dim=0).expand_as(needed) if (periodic == periodic[0]).all() else needed


def _pairs(batch: Batch, cells: torch.Tensor, repeats: torch.Tensor, cutoff: float) -> Iterator[Pairs]:
    """The pairs of each structure."""
    shape = (batch.num_graphs, -1, -1)
    offsets = torch.bmm(batch.cell.transpose(1, 2), cells.T[None].expand(shape))  # (B, 3, K) Å
    start = 0
    for pos, offset, most in zip(batch.pos.split(batch.natoms.tolist()), offsets, repeats, strict=True):
        if len(pos) == 0:  # a structure without atoms
            continue
        own = (cells.abs() <= most).all(dim=1)  # (K,)
        near = _within_reach(pos, offset, own, cutoff)
        moved = pos[:, :, None] + offset[:, near]  # (n, 3, K')
        squared = torch.sum((pos[:, None, :, None] - moved) ** 2, dim=2)  # (n, n, K')
        within = torch.le(squared, cutoff * cutoff) & torch.gt(squared, _SAME_ATOM)
        centre, neighbour, cell = within.nonzero(as_tuple=True)
        yield Pairs(centre + start, neighbour + start, cells[near][cell], squared[within])
        start += len(pos)


def _within_reach(pos: torch.Tensor, offset: torch.Tensor, own: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Indices of its own offsets (3, K) that leave the structure's box within the cutoff of itself."""
    extent = (pos.amax(dim=0) - pos.amin(dim=0))[:, None]
    gap = (offset.abs() - extent).clamp(min=0).norm(dim=0)
    return (
        (own & ~(gap > cutoff + _SAFE)).nonzero().view(-1)
    )  # so that what is no number is left to the comparison of atoms
