"""From nodes to the first SO(2) convolution of their edges: gather, rotate, multiply by a radial function, convolve.

    y_e = conv( r_e * D_e [x_source ; x_target] )        (E, X + S C')  from nodes  (N, L, C)

The products with the rotation D and the radial function r, 7,424 numbers an edge each at the published size, are made
for some hundred edges at a time, and again in the backward pass, so that they are never in memory for all edges.
EquiformerV2, arXiv:2306.12059; convolution of eSCN, arXiv:2302.03655.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.kernels.availability import uses_triton
from dens_plugin.nn.so2.convolution import Gradient, Weights, write_product
from dens_plugin.nn.so2.edges import Edges, Piece
from dens_plugin.nn.so2.fused import fused_messages
from dens_plugin.nn.so2.radial import Radial, multiply, multiply_backward
from dens_plugin.nn.so2.rotation import collect, expand
from dens_plugin.nn.so2.tf32 import backward_as_forward


def messages(
    nodes: torch.Tensor, radial: Radial | None, weights: Weights, edges: Edges, dtype: torch.dtype
) -> torch.Tensor:
    """The first convolution of every edge.

    Args:
        nodes: (N, (lmax + 1)^2, C) features.
        radial: factors of 2C channels; None for none.
        weights: of the convolution, from 2C channels.
        edges: E of them.
        dtype: precision of an edge's features.

    Returns:
        (E, X + S C').
    """
    nodes, weights = nodes.to(dtype), weights.to(dtype)
    radial = None if radial is None else radial.to(dtype)
    if uses_triton(nodes):
        return fused_messages(nodes, radial, weights, edges)
    if not torch.is_grad_enabled():
        return _convolved(nodes, radial, weights, edges)
    parts = radial or ()
    out: torch.Tensor = _Messages.apply(edges, len(weights.orders), nodes, weights.bias, *weights.orders, *parts)
    return out


def _convolved(nodes: torch.Tensor, radial: Radial | None, weights: Weights, edges: Edges) -> torch.Tensor:
    """`messages`; autograd does not see it."""
    out = nodes.new_empty(len(edges.source), weights.width)
    targets = nodes[edges.targets]
    for piece in edges.pieces:
        inputs = _inputs(_rotated(nodes, targets, edges, piece), radial, edges, piece)
        write_product(inputs, weights, edges.layout, out[piece.edges])
    return out


@backward_as_forward
class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edges: Edges, num_orders: int, nodes: torch.Tensor, bias: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        weights, radial = _parse(bias, rest, num_orders)
        out = _convolved(nodes, radial, weights, edges)
        ctx.save_for_backward(nodes, bias, *rest)
        ctx.edges, ctx.num_orders = edges, num_orders
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        nodes, bias, *rest = ctx.saved_tensors
        edges = ctx.edges
        weights, radial = _parse(bias, rest, ctx.num_orders)
        gradient, radial_sums = Gradient(weights, edges.layout), None if radial is None else radial.zeros()
        targets = nodes[edges.targets]
        grad_nodes, grad_targets = torch.zeros_like(nodes), torch.zeros_like(targets)
        for piece in edges.pieces:
            ends = _rotated(nodes, targets, edges, piece)
            if radial is None or radial_sums is None:
                grad_rotated = gradient.of_features(grad[piece.edges], torch.cat(ends, dim=2))
            else:
                factors = radial.factors(piece.edges, 2 * nodes.shape[2])
                inputs = multiply(ends, factors, edges.layout)
                grad_rotated = gradient.of_features(grad[piece.edges], inputs)
                grad_factors = multiply_backward(grad_rotated, ends, factors, edges.layout)
                radial.add_gradients(grad_factors, piece.edges, radial_sums)
            _collect_both(grad_rotated, edges, piece, grad_nodes, grad_targets)
        grad_nodes.index_add_(0, edges.targets, grad_targets)
        return None, None, grad_nodes, *gradient.of_weights(), *(radial_sums or ())


def _parse(bias: torch.Tensor, rest: Sequence[torch.Tensor], num_orders: int) -> tuple[Weights, Radial | None]:
    """What `messages` gave to autograd one by one."""
    radial = Radial(*rest[num_orders:]) if len(rest) > num_orders else None
    return Weights(bias, rest[:num_orders]), radial


def _rotated(
    nodes: torch.Tensor, targets: torch.Tensor, edges: Edges, piece: Piece
) -> tuple[torch.Tensor, torch.Tensor]:
    """(e, S, C) features of the sources and of the targets in the edges' frames, from (N, L, C) and (M, L, C)."""
    rotation = edges.rotation[piece.edges].to(nodes.dtype)
    of_source = torch.bmm(rotation, nodes.index_select(0, edges.source[piece.edges]))
    return of_source, expand(targets, edges, piece)


def _inputs(ends: tuple[torch.Tensor, torch.Tensor], radial: Radial | None, edges: Edges, piece: Piece) -> torch.Tensor:
    """(e, S, 2C) of the convolution, from (e, S, C) of the sources and of the targets."""
    if radial is None:
        return torch.cat(ends, dim=2)
    return multiply(ends, radial.factors(piece.edges, 2 * ends[0].shape[2]), edges.layout)


def _collect_both(
    rotated: torch.Tensor, edges: Edges, piece: Piece, nodes: torch.Tensor, targets: torch.Tensor
) -> None:
    """The transpose of `_rotated`: add both its halves, (e, S, 2C), to (N, L, C) and (M, L, C)."""
    of_source, of_target = rotated.chunk(2, dim=2)
    back = torch.bmm(edges.rotation[piece.edges].to(rotated.dtype).transpose(1, 2), of_source)
    nodes.index_add_(0, edges.source[piece.edges], back)
    collect(of_target, edges, piece, targets)
