"""From the first layer of eSCN's convolution (arXiv:2302.03655) to the sum of messages at the nodes.

    x_n = sum over edges e of n:  D_e^T  act( sum over both ends:  V (f_e * h_e) )

h are the values of the first layer (`coupling.first_layer`), f factors that depend on distance and elements. The second
layer of both ends is one product for each order. Edges go through a piece at a time, so that the products with the
factors and the values on the grid never leave a processor's cache; they are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.so2.activation import grid_silu, grid_silu_backward
from dens_plugin.nn.so2.edges import Edges
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotation import collect, expand

Tensors = Sequence[torch.Tensor]


class Factors(NamedTuple):
    """silu of a linear layer, P parts for each of two ends.

    Attributes:
        inputs: (E, K).
        weight: (2 P H, K).
        bias: (2 P H,).
    """

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


class Grid(NamedTuple):
    """Where the activation is applied.

    Attributes:
        to_grid: (G, S) from coefficients to the G points of a grid.
        from_grid: (G, S) and back.
    """

    to_grid: torch.Tensor
    from_grid: torch.Tensor


def message_sum(
    hidden: Sequence[torch.Tensor], factors: Factors, weights: Sequence[torch.Tensor], grid: Grid, edges: Edges
) -> torch.Tensor:
    """Sum of the messages at every target, in the nodes' frame.

    Args:
        hidden: for the sources and then for the targets, for every part (E, signs, H), of `coupling.first_layer`.
        factors: of the values of ``hidden``, in this order.
        weights: for every order (n C, 2 H) if m is 0, else (n C, 4 H): both parts of the sources, both of the targets.
        grid: of the activation.
        edges: E of them, to M targets.

    Returns:
        (M, (lmax + 1)^2, C), float32 or better.
    """
    dtype = hidden[0].dtype
    tensors = [part.to(dtype) for part in (*factors, *grid, *weights)]
    return _MessageSum.apply(edges, torch.is_grad_enabled(), *tensors, *hidden)


class _MessageSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Edges, is_training: bool, *tensors: torch.Tensor) -> torch.Tensor:
        factors, grid, weights, hidden = _parse(tensors, edges.layout)
        channels = weights[0].shape[0] // edges.layout.degrees_of(0)
        size = len(edges.layout), channels
        convolved = hidden[0].new_empty(len(edges.source) if is_training else 0, *size)
        out = edges.rotation.new_zeros(len(edges.targets), edges.rotation.shape[2], channels)
        for piece in edges.pieces:
            values = _factors(factors, piece.edges, hidden[0].shape[2])[1]
            of_piece = convolved[piece.edges] if is_training else convolved.new_empty(len(values), *size)
            for start, scaled, weight in _scaled(hidden, values, weights, edges.layout, piece.edges):
                for sign in range(scaled.shape[1]):
                    first = start * channels + sign * len(weight)
                    torch.mm(scaled[:, sign], weight.t(), out=of_piece.flatten(1)[:, first : first + len(weight)])
            collect(grid_silu(of_piece, *grid), edges, piece, out)
        ctx.save_for_backward(convolved, *tensors)
        ctx.edges = edges
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        convolved, *tensors = ctx.saved_tensors
        edges = ctx.edges
        factors, grid, weights, hidden = _parse(tensors, edges.layout)
        sums = [torch.zeros_like(weight) for weight in weights]
        of_factors = Factors(*(torch.zeros_like(part) for part in factors))
        out = [torch.empty_like(part) for part in hidden]
        for piece in edges.pieces:
            of_messages = expand(grad, edges, piece).to(convolved.dtype)
            of_convolved = grid_silu_backward(of_messages, convolved[piece.edges], *grid)
            before, values = _factors(factors, piece.edges, hidden[0].shape[2])
            of_values = torch.zeros_like(values)
            parts = _parts(hidden, edges.layout)
            for m, (start, scaled, weight) in enumerate(_scaled(hidden, values, weights, edges.layout, piece.edges)):
                signs, channels = scaled.shape[1], convolved.shape[2]
                rows = of_convolved[:, start : start + signs * len(weight) // channels].reshape(-1, len(weight))
                sums[m].addmm_(rows.t(), scaled.view(len(rows), -1))
                of_scaled = torch.mm(rows, weight).view(scaled.shape)
                _scale_backward(of_scaled, parts[m], (hidden, values), (out, of_values), piece.edges)
            of_values = torch.ops.aten.silu_backward(of_values.view_as(before), before)
            torch.mm(of_values, factors.weight, out=of_factors.inputs[piece.edges])
            of_factors.weight.addmm_(of_values.t(), factors.inputs[piece.edges])
            of_factors.bias.add_(of_values.sum(0))
        return None, None, *of_factors, None, None, *sums, *out


def _parse(tensors: Sequence[torch.Tensor], layout: Layout) -> tuple[Factors, Grid, Tensors, Tensors]:
    count = 5 + layout.mmax + 1
    return Factors(*tensors[:3]), Grid(*tensors[3:5]), tensors[5:count], tensors[count:]


def _factors(factors: Factors, edges: slice, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(e, 2 P H) before the activation, and (e, 2 P, H) behind it."""
    before = torch.addmm(factors.bias, factors.inputs[edges], factors.weight.t())
    return before, functional.silu(before).view(len(before), -1, width)


def _parts(hidden: Tensors, layout: Layout) -> list[list[int]]:
    """For every order the numbers of its parts among ``hidden``: those of the sources, then those of the targets."""
    count = len(hidden) // 2
    of_ends = [[0], *([2 * m - 1, 2 * m] for m in range(1, layout.mmax + 1))]
    return [[end * count + part for end in (0, 1) for part in parts] for parts in of_ends]


def _scaled(
    hidden: Tensors, values: torch.Tensor, weights: Tensors, layout: Layout, edges: slice
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For every order: where its coefficients begin, its inputs (e, signs, 2 H or 4 H), and its weight."""
    width = values.shape[2]
    for m, parts in enumerate(_parts(hidden, layout)):
        out = values.new_empty(len(values), min(m, 1) + 1, len(parts) * width)
        for slot, part in enumerate(parts):
            torch.mul(hidden[part][edges], values[:, part, None], out=out[:, :, slot * width : (slot + 1) * width])
        yield layout.start_of(m), out, weights[m]


def _scale_backward(
    grad: torch.Tensor,
    parts: list[int],
    inputs: tuple[Tensors, torch.Tensor],
    outputs: tuple[Tensors, torch.Tensor],
    edges: slice,
) -> None:
    """Write the gradients of both factors of the inputs of an order."""
    (hidden, values), (of_hidden, of_values) = inputs, outputs
    width = values.shape[2]
    for slot, part in enumerate(parts):
        of_part = grad[:, :, slot * width : (slot + 1) * width]
        torch.sum(of_part * hidden[part][edges], 1, out=of_values[:, part])
        torch.mul(of_part, values[:, part, None], out=of_hidden[part][edges])
