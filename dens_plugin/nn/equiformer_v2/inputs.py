"""What the first convolution of an edge is applied to: features of both its atoms, rotated and multiplied.

    z_e = r_e * D_e [x_source ; x_target]        (e, S, 2C)  for a piece, from nodes  (N, L, C)

In plain torch; `loop_inputs.LoopInputs` does the same for float32 on a CPU. Autograd sees none of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import torch

from dens_plugin.nn.equiformer_v2.radial import Radial, multiply, multiply_backward
from dens_plugin.nn.so2.rotated_edges import Piece, RotatedEdges
from dens_plugin.nn.so2.rotation import collect, expand


class Inputs(Protocol):
    """Of one piece after the other, and the gradients of what they are made of."""

    def of(self, piece: Piece) -> torch.Tensor:
        """(e, S, 2C)."""

    def by_order(self, piece: Piece) -> Iterator[torch.Tensor]:
        """For every m from 0 on its share of them, until the next is asked for.

        They are (e, n, 2C) for m = 0, then (e, 2 n, 2C) those of m and of -m, or (e, 3 n, 2C) also with their sums.
        """

    def add_gradient(self, grad: torch.Tensor, piece: Piece) -> None:
        """Take the gradient (e, S, 2C) of the inputs of the last piece, which is written over."""

    def gradients(self) -> tuple[torch.Tensor, ...]:
        """Of the nodes, and of the three parts of the radial factors if there are any."""


class _Sums(NamedTuple):
    nodes: torch.Tensor
    targets: torch.Tensor
    radial: Radial | None


class PlainInputs:
    """`Inputs` in plain torch.

    Args:
        nodes: (N, L, C).
        radial: factors of 2C channels; None for none.
        edges: E of them.
    """

    def __init__(self, nodes: torch.Tensor, radial: Radial | None, edges: RotatedEdges) -> None:
        self._nodes, self._radial, self._edges = nodes, radial, edges
        self._targets = nodes[edges.targets]
        self._ends: tuple[torch.Tensor, torch.Tensor] | None = None
        self._factors: torch.Tensor | None = None

    def of(self, piece: Piece) -> torch.Tensor:
        """(e, S, 2C)."""
        rotation = self._edges.rotation[piece.edges].to(self._nodes.dtype)
        of_source = torch.bmm(rotation, self._nodes.index_select(0, self._edges.source[piece.edges]))
        self._ends = of_source, expand(self._targets, self._edges, piece)
        if self._radial is None:
            return torch.cat(self._ends, dim=2)
        self._factors = self._radial.factors(piece.edges, 2 * self._nodes.shape[2])
        return multiply(self._ends, self._factors, self._edges.layout)

    def by_order(self, piece: Piece) -> Iterator[torch.Tensor]:
        """For every m from 0 on its share of them, of m and -m."""
        return self._edges.layout.orders_of(self.of(piece))

    def add_gradient(self, grad: torch.Tensor, piece: Piece) -> None:
        """Take that of the last piece's inputs, (e, S, 2C), which is written over."""
        sums, edges = self._sums, self._edges
        if self._radial is not None and sums.radial is not None:
            assert self._ends is not None, "a gradient comes after its inputs"
            assert self._factors is not None
            of_factors = multiply_backward(grad, self._ends, self._factors, edges.layout)
            self._radial.add_gradients(of_factors, piece.edges, sums.radial)
        of_source, of_target = grad.chunk(2, dim=2)
        back = torch.bmm(edges.rotation[piece.edges].to(grad.dtype).transpose(1, 2), of_source)
        sums.nodes.index_add_(0, edges.source[piece.edges], back)
        collect(of_target, edges, piece, sums.targets)

    def gradients(self) -> tuple[torch.Tensor, ...]:
        """Of the nodes, and of the three parts of the radial factors if there are any."""
        nodes, targets, radial = self._sums
        return nodes.index_add(0, self._edges.targets, targets), *(radial or ())

    @cached_property
    def _sums(self) -> _Sums:
        radial = None if self._radial is None else self._radial.zeros()
        return _Sums(torch.zeros_like(self._nodes), torch.zeros_like(self._targets), radial)
