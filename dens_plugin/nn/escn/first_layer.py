"""The first layer of eSCN's convolution (arXiv:2302.03655, equation 13), applied to nodes before they are rotated.

The layer is linear: for every end of an edge, every order m and both parts (real, imaginary) of its weight,

    h_+-m = sum over l of  W_l z_l,+-m,      z_l,k = sum over j of  D_l,kj x_l,j

with D the rotation of the edge and x the features of the node. The two sums commute. Node features times the weight
are shared by all edges at a node, and an edge takes one row of its rotation to each value of h: with 20 edges at an
atom and the published size (lmax 6, mmax 2) that is a quarter of the multiplications of rotating first. With fewer than
five edges it is more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.so2.degree_copies import copied, summed
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges

_CPU_EDGES = 640  # a group's projected features, some megabytes for each part, stay in a last-level cache
_GPU_EDGES = 16384
_ROOM = 32


class Part(NamedTuple):
    """A part of the weight of an order; of the order 0 there is only the real one.

    Attributes:
        m: the order.
        is_imaginary: whether the part multiplies with i.
    """

    m: int
    is_imaginary: bool


class Group(NamedTuple):
    """Atoms with about as many edges each, n of them, and a matrix of up to k edges for each.

    Attributes:
        atoms: (n,) which atoms.
        edges: (e,) the edges at them.
        slots: (e,) their places among the n k, or a slice of all of them.
        rows: for every part (n, k signs, (lmax + 1)^2 - m^2) rows of rotations, for the degrees from m.
    """

    atoms: torch.Tensor
    edges: torch.Tensor
    slots: torch.Tensor | slice
    rows: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Degrees:
    """How many edges start and end at each of N atoms, most first.

    No tuple: a batch that goes to a GPU takes along what is in tuples, and these numbers are for fairchem.

    Attributes:
        of_sources: numbers of edges that start at an atom.
        of_targets: numbers of edges that end at an atom.
    """

    of_sources: list[int]
    of_targets: list[int]

    @classmethod
    def of(cls, edge_index: torch.Tensor, num_atoms: int) -> Degrees:
        """Counted where the edges (2, E) are."""
        counts = (ends.bincount(minlength=num_atoms).sort(descending=True).values for ends in edge_index)
        return cls(*(of_end.tolist() for of_end in counts))

    @property
    def room(self) -> tuple[int, int]:
        """Room for the edges that start and that end at any atom, in a coarse measure that many batches share."""
        of_sources, of_targets = (-(-max(counts, default=0) // _ROOM) * _ROOM for counts in vars(self).values())
        return of_sources, of_targets


class _Share(NamedTuple):
    """What a group takes of the atoms, and of their edges; each atom has room for ``size`` edges."""

    atoms: slice
    edges: slice
    size: int


def parts_of(layout: Layout) -> list[Part]:
    """The parts of a convolution's weights, in the order in which this module takes them."""
    return [Part(0, False), *(Part(m, part) for m in range(1, layout.mmax + 1) for part in (False, True))]


def group_edges(
    edges: RotatedEdges, degrees: Degrees | None = None, *, is_padded: bool = False
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """All edges grouped by their sources, and by their targets.

    Args:
        edges: to all atoms.
        degrees: of these edges, which say how large the groups are; without them the device is asked.
        is_padded: whether the batch was padded for a recording, whose shapes are those of other batches too: then all
            atoms are one group, with room for as many edges as `Degrees.room` says.
    """
    rows, ends = _rows(edges.packed, edges.layout), torch.stack([edges.source, edges.target])
    atoms = torch.arange(len(edges.targets) + 1, device=ends.device).expand(2, -1).contiguous()
    counts = torch.searchsorted(ends.sort(dim=1).values, atoms).diff(dim=1)
    counts, atoms = counts.sort(dim=1, descending=True, stable=True)
    degrees = Degrees(*counts.tolist()) if degrees is None else degrees
    sizes: tuple[list[int] | int, ...] = (degrees.of_sources, degrees.of_targets)
    sizes = degrees.room if is_padded and ends.is_cuda else sizes
    of_sources, of_targets = (_groups(*each, rows) for each in zip(ends, atoms, sizes, strict=True))
    return of_sources, of_targets


def first_layer(
    nodes: torch.Tensor, weights: Sequence[torch.Tensor], groups: tuple[Group, ...], num_edges: int
) -> tuple[torch.Tensor, ...]:
    """The first layer for one end of all edges.

    Args:
        nodes: (N, (lmax + 1)^2, C).
        weights: for every part (H, (lmax + 1 - m) C).
        groups: of the edges.
        num_edges: E.

    Returns:
        For every part (E, signs, H): what it adds to the coefficients of +m and of -m, before the second layer.
    """
    return _FirstLayer.apply(groups, num_edges, nodes, *(weight.to(nodes.dtype) for weight in weights))


class _FirstLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, groups: tuple[Group, ...], num_edges: int, nodes: torch.Tensor, *weights: torch.Tensor
    ) -> Any:
        ctx.save_for_backward(nodes, *weights)
        ctx.groups = groups
        signs = [1 if part == 0 else 2 for part in range(len(weights))]
        out = [nodes.new_empty(num_edges, s, w.shape[0]) for s, w in zip(signs, weights, strict=True)]
        for group in groups:
            features = _by_coefficient(nodes, group)
            for rows, weight, hidden in zip(group.rows, weights, out, strict=True):
                projected = _project(features, weight)
                values = torch.bmm(rows.to(nodes.dtype), projected.transpose(0, 1)).view(-1, *hidden.shape[1:])
                hidden.index_copy_(0, group.edges, values[group.slots])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        nodes, *weights = ctx.saved_tensors
        sums = [torch.zeros_like(weight) for weight in weights]
        out = torch.zeros_like(nodes)
        for group in ctx.groups:
            features = _by_coefficient(nodes, group)
            grad_features = torch.zeros_like(features)
            for rows, weight, total, grad in zip(group.rows, weights, sums, grads, strict=True):
                values = grad.new_zeros(rows.shape[0] * rows.shape[1] // grad.shape[1], *grad.shape[1:])
                values[group.slots] = grad.index_select(0, group.edges)
                projected = values.new_empty(rows.shape[2], len(rows), values.shape[2])
                transposed = rows.to(grad.dtype).transpose(1, 2)
                torch.bmm(transposed, values.view(*rows.shape[:2], -1), out=projected.transpose(0, 1))
                _project_backward(projected, features, weight, grad_features, total)
            out.index_copy_(0, group.atoms, grad_features.transpose(0, 1))
        return None, None, out, *sums


def _by_coefficient(nodes: torch.Tensor, group: Group) -> torch.Tensor:
    """((lmax + 1)^2, n, C) features of the atoms of a group."""
    return nodes.transpose(0, 1).index_select(1, group.atoms)


def _project(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """((lmax + 1)^2 - m^2, n, H) features (..., n, C) times the weight (H, (lmax + 1 - m) C) of their degree."""
    if features.is_cuda:  # where many small products take longer to ask for than to compute
        copies, m = _copies(features, weight)
        return torch.bmm(features[m * m :], copies.transpose(1, 2))
    matrices = _of_degrees(features, weight)
    out = features.new_empty(len(features) - matrices[0][0].start, features.shape[1], len(weight))
    for of_all, of_kept, matrix in matrices:
        torch.mm(features[of_all].flatten(0, 1), matrix.t(), out=out[of_kept].flatten(0, 1))
    return out


def _project_backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    grad_features: torch.Tensor,
    grad_weight: torch.Tensor,
) -> None:
    """Add the gradients of both factors of `_project`."""
    if features.is_cuda:
        copies, m = _copies(features, weight)
        grad_features[m * m :].baddbmm_(grad, copies)
        of_degrees = summed(torch.bmm(grad.transpose(1, 2), features[m * m :]), m)  # (degrees, H, C)
        grad_weight.unflatten(1, (-1, features.shape[2])).add_(of_degrees.transpose(0, 1))
        return
    sums = _of_degrees(features, grad_weight)
    for (of_all, of_kept, matrix), (_, _, total) in zip(_of_degrees(features, weight), sums, strict=True):
        flat = grad[of_kept].flatten(0, 1)
        grad_features[of_all].flatten(0, 1).addmm_(flat, matrix)
        total.addmm_(flat.t(), features[of_all].flatten(0, 1))


def _copies(features: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, int]:
    """((lmax + 1)^2 - m^2, H, C) the weight's part for every component, and m."""
    matrices = weight.unflatten(1, (-1, features.shape[2])).transpose(0, 1)
    m = math.isqrt(len(features)) - len(matrices)
    return copied(matrices, m), m


def _of_degrees(features: torch.Tensor, weight: torch.Tensor) -> list[tuple[slice, slice, torch.Tensor]]:
    """For every degree from m: its place among all coefficients and among those kept, its part (H, C) of the weight."""
    matrices = weight.unflatten(1, (-1, features.shape[2])).unbind(1)
    count = round(len(features) ** 0.5)
    m = count - len(matrices)
    return [
        (slice(n * n, (n + 1) ** 2), slice(n * n - m * m, (n + 1) ** 2 - m * m), matrix)
        for n, matrix in zip(range(m, count), matrices, strict=True)
    ]


def _rows(packed: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """For every part (E, signs, (lmax + 1)^2 - m^2): the rows that give +m and -m, for the imaginary part times i."""
    out = []
    for m in range(layout.mmax + 1):
        start, signs, count = layout.start_of(m), min(m, 1) + 1, layout.degrees_of(m)
        first, last = layout.packed_starts[start], layout.packed_starts[start + signs * count]
        real = packed[:, first:last].unflatten(1, (signs, -1))  # the degrees one behind the other, as the components
        out += [real] if m == 0 else [real, torch.stack([-real[:, 1], real[:, 0]], dim=1)]
    return out


def _groups(
    ends: torch.Tensor, atoms: torch.Tensor, counts: list[int] | int, rows: list[torch.Tensor]
) -> tuple[Group, ...]:
    """Groups of atoms (N,) that come in descending order of their numbers of edges; or one with room for a number."""
    rank, order = atoms.argsort()[ends].sort(stable=True)  # of the edges' atoms, and the edges in this order
    numbers = torch.arange(len(ends), device=ends.device)
    number = numbers - torch.searchsorted(rank, rank)  # of an edge among those of its atom
    if isinstance(counts, list):
        shares = list(_shares(counts, _GPU_EDGES if ends.is_cuda else _CPU_EDGES))
    else:
        shares = [_Share(slice(0, len(atoms)), slice(0, len(ends)), counts)] if counts > 0 else []
    return tuple(
        _group(atoms[share.atoms], order[share.edges], _slots(share, rank, number), share.size, rows)
        for share in shares
    )


def _shares(counts: list[int], limit: int) -> Iterator[_Share]:
    """A few atoms at a time, which come in descending order of their numbers of edges."""
    start = first = 0
    while start < len(counts) and counts[start] > 0:
        end = min(len(counts), start + max(1, limit // counts[start]))
        last = first + sum(counts[start:end])
        yield _Share(slice(start, end), slice(first, last), counts[start])
        start, first = end, last


def _slots(share: _Share, rank: torch.Tensor, number: torch.Tensor) -> torch.Tensor | slice:
    """Places of a group's edges, from the ranks (E,) of all edges' atoms and the edges' numbers (E,) at them."""
    atoms, edges = share.atoms, share.edges
    if (atoms.stop - atoms.start) * share.size == edges.stop - edges.start:
        return slice(None)
    return (rank[edges] - atoms.start) * share.size + number[edges]


def _group(
    atoms: torch.Tensor, edges: torch.Tensor, slots: torch.Tensor | slice, size: int, rows: list[torch.Tensor]
) -> Group:
    padded = []
    for of_part in rows:
        of_group = of_part.new_zeros(len(atoms) * size, *of_part.shape[1:])
        of_group[slots] = of_part[edges]
        padded.append(of_group.view(len(atoms), -1, of_part.shape[2]))
    return Group(atoms, edges, slots, tuple(padded))
