"""The pieces of message and attention by the loops of `dens_plugin.nn.loops`, for float32 on a CPU.

The same formulas as the plain torch of `message`, `rotation` and `attention`, in one pass over memory each. As there,
autograd sees none of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from dens_plugin.nn.loops.aggregate import Degrees, Groups, Weights, add_to_atoms, weighted_backward
from dens_plugin.nn.loops.product_gradient import product_gradient
from dens_plugin.nn.loops.rotate import End, Factors, rotate_order_to_edges, rotate_to_edges
from dens_plugin.nn.so2.edges import Edges, Piece
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.radial import Radial, factor_rows, orders


class LoopInputs:
    """As `inputs.PlainInputs`."""

    def __init__(self, nodes: torch.Tensor, radial: Radial | None, edges: Edges) -> None:
        self._nodes, self._radial, self._edges = nodes.contiguous(), radial, edges
        self._factors: Factors | None = None

    def of(self, piece: Piece) -> torch.Tensor:
        """(e, S, 2C)."""
        self._factors = None if self._radial is None else self._factors_of(self._radial, piece)
        packed, blocks = self._edges.packed[piece.edges], _blocks(self._edges.layout, self._num_rows)
        return rotate_to_edges(self._ends(piece), packed, blocks, self._factors)

    def by_order(self, piece: Piece) -> Iterator[torch.Tensor]:
        """For every m from 0 on, in the memory of the one before, with the sums of m and -m."""
        every, edges = list(orders(self._edges.layout, self._num_rows)), self._edges
        packed, ends = edges.packed[piece.edges], self._ends(piece)
        sizes = [order.degrees * (1 if order.signs == 1 else 3) for order in every]
        memory = self._nodes.new_empty(len(packed) * max(sizes) * self._width)
        for m, (order, size) in enumerate(zip(every, sizes, strict=True)):
            out = memory[: len(packed) * size * self._width].view(-1, size, self._width)
            bias = None
            if self._radial is not None:
                weight, bias = self._rows(self._radial, order.rows)
                torch.mm(self._radial.hidden[piece.edges], weight.t(), out=out[:, size - order.degrees :].flatten(1))
            rotate_order_to_edges(ends, packed, _blocks(edges.layout, self._num_rows, m), bias, out)
            yield out

    def add_gradient(self, grad: torch.Tensor, piece: Piece) -> None:
        """Take that of the last piece's inputs, (e, S, 2C), which is written over."""
        of_nodes, of_radial = self._sums
        edges, factors, packed = self._edges, self._factors, self._edges.packed[piece.edges]
        degrees, channels = _degrees(edges.layout), self._nodes.shape[2]
        of_targets = _targets(edges, piece)
        groups = _grouped(edges.source[piece.edges]), of_targets._replace(atoms=edges.targets[piece.targets])
        parts = slice(channels), slice(channels, None)
        if self._radial is None or of_radial is None or factors is None:
            for of_end, part in zip(groups, parts, strict=True):
                add_to_atoms(grad[:, :, part], packed, degrees, of_end, of_nodes)
            return
        tables = packed, _blocks(edges.layout, self._num_rows), degrees, factors
        for of_end, part in zip(groups, parts, strict=True):
            product_gradient(grad, self._nodes, of_end, *tables, part, of_nodes)
        self._radial.add_gradients(factors.values, piece.edges, of_radial)

    def gradients(self) -> tuple[torch.Tensor, ...]:
        """Of the nodes, and of the three parts of the radial factors if there are any."""
        nodes, radial = self._sums
        return nodes, *(radial or ())

    @property
    def _num_rows(self) -> int:
        """R of the factors; 0 for none."""
        return 0 if self._radial is None else len(self._radial.bias) // self._width

    @property
    def _width(self) -> int:
        """2C."""
        return 2 * self._nodes.shape[2]

    def _factors_of(self, radial: Radial, piece: Piece) -> Factors:
        """(e, R, 2C)."""
        values = torch.mm(radial.hidden[piece.edges], radial.weight.t())
        return Factors(values.unflatten(1, (-1, self._width)), radial.bias)

    def _rows(self, radial: Radial, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of some rows of the factors."""
        weight, bias = (part.unflatten(0, (-1, self._width))[rows] for part in (radial.weight, radial.bias))
        return weight.flatten(0, 1), bias.flatten(0, 1)

    @functools.cached_property
    def _sums(self) -> tuple[torch.Tensor, Radial | None]:
        return torch.zeros_like(self._nodes), None if self._radial is None else self._radial.zeros()

    def _ends(self, piece: Piece) -> list[End]:
        return [End(self._nodes, of_end[piece.edges]) for of_end in (self._edges.source, self._edges.target)]


def expand(features: torch.Tensor, edges: Edges, piece: Piece) -> torch.Tensor:
    """As `rotation.expand`."""
    ends = [End(features.contiguous(), edges.row[piece.edges])]
    return rotate_to_edges(ends, edges.packed[piece.edges], _blocks(edges.layout))


def collect(
    features: torch.Tensor, edges: Edges, piece: Piece, out: torch.Tensor, attention: torch.Tensor | None = None
) -> None:
    """As `rotation.collect`, of features that are weighed first if there are attention weights (e, H)."""
    weights = None if attention is None else Weights(attention.contiguous(), edges.scale)
    add_to_atoms(features, edges.packed[piece.edges], _degrees(edges.layout), _targets(edges, piece), out, weights)


def collect_backward(
    grad: torch.Tensor, values: torch.Tensor, attention: torch.Tensor, edges: Edges, piece: Piece
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of values (e, S, C) and attention (e, H) of a weighed `collect`, from that of its sums (M, L, C)."""
    weights, packed = Weights(attention.contiguous(), edges.scale), edges.packed[piece.edges]
    return weighted_backward(grad.contiguous(), edges.row[piece.edges], values, packed, _blocks(edges.layout), weights)


@functools.cache
def _blocks(layout: Layout, num_factors: int = 0, m: int | None = None) -> torch.Tensor:
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
def _degrees(layout: Layout) -> Degrees:
    counts = [2 * min(degree, layout.mmax) + 1 for degree in range(layout.lmax + 1)]
    starts = [layout.packed_starts[s] for s in layout.by_degree]
    return Degrees(*(torch.tensor(numbers, device="cpu") for numbers in (layout.by_degree, starts, counts)))


def _targets(edges: Edges, piece: Piece) -> Groups:
    """Edges of a piece by rows of targets."""
    rows, count = piece.targets, piece.edges.stop - piece.edges.start
    offsets = edges.offsets[rows.start : rows.stop + 1] - piece.edges.start
    targets, numbers = torch.arange(rows.start, rows.stop, device="cpu"), torch.arange(count, device="cpu")
    return Groups(targets, offsets, numbers)


def _grouped(atoms: torch.Tensor) -> Groups:
    """Edges by the atoms (e,) at an end."""
    ordered, edges = atoms.sort(stable=True)
    different, counts = ordered.unique_consecutive(return_counts=True)
    return Groups(different, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), edges)
