"""Inputs of the first convolution by the loops of `dens_plugin.nn.backends.cpu`, for float32 on a CPU.

The same formulas as the plain torch of `inputs`, in one pass over memory each. As there, autograd sees none of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from dens_plugin.nn.backends.cpu.aggregate import Groups, add_to_atoms
from dens_plugin.nn.backends.cpu.product_gradient import product_gradient
from dens_plugin.nn.backends.cpu.rotate import End, Factors, rotate_order_to_edges, rotate_to_edges
from dens_plugin.nn.equiformer_v2.radial import Radial
from dens_plugin.nn.so2.by_loops import blocks_of, degrees_of, targets_of
from dens_plugin.nn.so2.orders import orders
from dens_plugin.nn.so2.rotated_edges import Piece, RotatedEdges


class LoopInputs:
    """As `inputs.PlainInputs`."""

    def __init__(self, nodes: torch.Tensor, radial: Radial | None, edges: RotatedEdges) -> None:
        self._nodes, self._radial, self._edges = nodes.contiguous(), radial, edges
        self._factors: Factors | None = None

    def of(self, piece: Piece) -> torch.Tensor:
        """(e, S, 2C)."""
        self._factors = None if self._radial is None else self._factors_of(self._radial, piece)
        packed, blocks = self._edges.packed[piece.edges], blocks_of(self._edges.layout, self._num_rows)
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
            rotate_order_to_edges(ends, packed, blocks_of(edges.layout, self._num_rows, m), bias, out)
            yield out

    def add_gradient(self, grad: torch.Tensor, piece: Piece) -> None:
        """Take that of the last piece's inputs, (e, S, 2C), which is written over."""
        of_nodes, of_radial = self._sums
        edges, factors, packed = self._edges, self._factors, self._edges.packed[piece.edges]
        degrees, channels = degrees_of(edges.layout), self._nodes.shape[2]
        of_targets = targets_of(edges, piece)
        groups = _by_atom(edges.source[piece.edges]), of_targets._replace(atoms=edges.targets[piece.targets])
        parts = slice(channels), slice(channels, None)
        if self._radial is None or of_radial is None or factors is None:
            for of_end, part in zip(groups, parts, strict=True):
                add_to_atoms(grad[:, :, part], packed, degrees, of_end, of_nodes)
            return
        tables = packed, blocks_of(edges.layout, self._num_rows), degrees, factors
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


def _by_atom(atoms: torch.Tensor) -> Groups:
    """Edges by the atoms (e,) at an end."""
    ordered, edges = atoms.sort(stable=True)
    different, counts = ordered.unique_consecutive(return_counts=True)
    return Groups(different, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), edges)
