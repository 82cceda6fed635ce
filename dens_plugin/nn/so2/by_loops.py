"""Rotations by the loops of `dens_plugin.nn.backends.cpu`, for float32 on a CPU, and the tables that loops want.

The same formulas as the plain torch of `rotation`, in one pass over memory each. As there, autograd sees none of it.
"""

from __future__ import annotations

import functools

import torch

from dens_plugin.nn.backends.cpu.aggregate import Degrees, Groups, Weights, add_to_atoms, weighted_backward
from dens_plugin.nn.backends.cpu.rotate import End, rotate_to_edges
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.orders import factor_rows, orders
from dens_plugin.nn.so2.rotated_edges import Piece, RotatedEdges


def expand(features: torch.Tensor, edges: RotatedEdges, piece: Piece) -> torch.Tensor:
    """As `rotation.expand`."""
    ends = [End(features.contiguous(), edges.row[piece.edges])]
    return rotate_to_edges(ends, edges.packed[piece.edges], blocks_of(edges.layout))


def collect(
    features: torch.Tensor, edges: RotatedEdges, piece: Piece, out: torch.Tensor, attention: torch.Tensor | None = None
) -> None:
    """As `rotation.collect`, of features that are weighed first if there are attention weights (e, H)."""
    weights = None if attention is None else Weights(attention.contiguous(), edges.scale)
    add_to_atoms(features, edges.packed[piece.edges], degrees_of(edges.layout), targets_of(edges, piece), out, weights)


def collect_backward(
    grad: torch.Tensor, values: torch.Tensor, attention: torch.Tensor, edges: RotatedEdges, piece: Piece
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of values (e, S, C) and attention (e, H) of a weighed `collect`, from that of its sums (M, L, C)."""
    weights, packed = Weights(attention.contiguous(), edges.scale), edges.packed[piece.edges]
    return weighted_backward(
        grad.contiguous(), edges.row[piece.edges], values, packed, blocks_of(edges.layout), weights
    )


@functools.cache
def blocks_of(layout: Layout, num_factors: int = 0, m: int | None = None) -> torch.Tensor:
    """As `rotate_to_edges` wants them: of all coefficients, or of m and -m, whose rows count from their first one."""
    rows = factor_rows(layout, num_factors)
    firsts = {row: s for s, row in reversed([(s, rows[s]) for s in layout.by_degree])}
    coefficients = zip(layout.coefficients, layout.packed_starts, rows, strict=False)
    blocks = [
        [start, degree**2, 2 * degree + 1, row, firsts[row] == s]
        for s, ((degree, _), start, row) in enumerate(coefficients)
    ]
    if m is None:
        return torch.tensor(blocks, device="cpu")
    order = list(orders(layout, num_factors))[m]
    of_order = blocks[order.start : order.start + order.signs * order.degrees]
    return torch.tensor([[*ends, row - order.rows.start, first] for *ends, row, first in of_order], device="cpu")


@functools.cache
def degrees_of(layout: Layout) -> Degrees:
    """As `add_to_atoms` wants them."""
    counts = [2 * min(degree, layout.mmax) + 1 for degree in range(layout.lmax + 1)]
    starts = [layout.packed_starts[s] for s in layout.by_degree]
    return Degrees(*(torch.tensor(numbers, device="cpu") for numbers in (layout.by_degree, starts, counts)))


def targets_of(edges: RotatedEdges, piece: Piece) -> Groups:
    """Edges of a piece by rows of targets."""
    rows, count = piece.targets, piece.edges.stop - piece.edges.start
    offsets = edges.offsets[rows.start : rows.stop + 1] - piece.edges.start
    targets, numbers = torch.arange(rows.start, rows.stop, device="cpu"), torch.arange(count, device="cpu")
    return Groups(targets, offsets, numbers)
