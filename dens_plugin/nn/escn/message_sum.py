"""From the first layer of eSCN's convolution (arXiv:2302.03655) to the sum of messages at the nodes.

    x_n = sum over edges e of n:  D_e^T  act( y_e )

y is the second layer (`second_layer`). Edges go through a piece at a time, so that the products within that layer and
the values on the grid never leave a processor's cache; they are made again in the backward pass. On a GPU the kernels
of `dens_plugin.nn.backends.triton` keep the latter in registers, and all edges go through at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.triton.aggregate import aggregate
from dens_plugin.nn.backends.triton.s2_activation import s2_activation
from dens_plugin.nn.escn.second_layer import Gradient, SecondLayer
from dens_plugin.nn.so2.activation import grid_silu, grid_silu_backward
from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.rotated_edges import RotatedEdges
from dens_plugin.nn.so2.rotation import collect, expand


class Grid(NamedTuple):
    """Where the activation is applied.

    Attributes:
        to_grid: (G, S) from coefficients to the G points of a grid.
        from_grid: (G, S), whose transpose leads back.
    """

    to_grid: GridMatrix
    from_grid: GridMatrix


def message_sum(layer: SecondLayer, grid: Grid, edges: RotatedEdges) -> torch.Tensor:
    """Sum of the messages at every target, in the nodes' frame, in the precision of the first layer's values.

    Args:
        layer: the second, of all edges.
        grid: of the activation.
        edges: E of them, to M targets.

    Returns:
        (M, (lmax + 1)^2, C), float32 or better.
    """
    layer = layer.to(layer.hidden[0].dtype)
    if machine_for(layer.hidden[0]) is Machine.TRITON:
        return fused_message_sum(layer, grid, edges)
    out: torch.Tensor = _MessageSum.apply(edges, torch.is_grad_enabled(), grid, *layer.tensors)
    return out


def fused_message_sum(layer: SecondLayer, grid: Grid, edges: RotatedEdges) -> torch.Tensor:
    """As `message_sum`, by the kernels of `dens_plugin.nn.backends.triton`: as much is kept for the backward pass."""
    matrices = [matrix.dense for matrix in grid]
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    activated = s2_activation(layer.all().flatten(1), *matrices, has_gates=False, allow_tf32=allow_tf32)
    scale = edges.packed.new_ones(len(edges.layout))  # unlike EquiformerV2, eSCN does not make up for orders left out
    return aggregate(activated, None, edges.rotation, scale, edges.offsets, edges.row)


class _MessageSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: RotatedEdges, is_training: bool, grid: Grid, *tensors: torch.Tensor) -> torch.Tensor:
        layer = SecondLayer.parse(tensors, edges.layout)
        size = len(edges.layout), layer.channels
        convolved = tensors[0].new_empty(layer.num_edges if is_training else 0, *size)
        out = edges.packed.new_zeros(len(edges.targets), (edges.layout.lmax + 1) ** 2, layer.channels)
        for piece in edges.pieces:
            count = len(edges.source[piece.edges])
            of_piece = convolved[piece.edges] if is_training else convolved.new_empty(count, *size)
            layer.write(piece.edges, of_piece)
            collect(grid_silu(of_piece, *grid), edges, piece, out)
        ctx.save_for_backward(convolved, *tensors)
        ctx.edges, ctx.grid = edges, grid
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        convolved, *tensors = ctx.saved_tensors
        edges = ctx.edges
        gradient = Gradient(SecondLayer.parse(tensors, edges.layout))
        for piece in edges.pieces:
            of_messages = expand(grad, edges, piece).to(convolved.dtype)
            gradient.add(grid_silu_backward(of_messages, convolved[piece.edges], *ctx.grid), piece.edges)
        return None, None, None, *gradient.of_tensors()
