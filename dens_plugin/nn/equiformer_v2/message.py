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

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.equiformer_v2.convolution import Gradient, Weights, write_product
from dens_plugin.nn.equiformer_v2.fused import fused_messages
from dens_plugin.nn.equiformer_v2.inputs import Inputs, PlainInputs
from dens_plugin.nn.equiformer_v2.loop_inputs import LoopInputs
from dens_plugin.nn.equiformer_v2.radial import Radial
from dens_plugin.nn.so2.rotated_edges import RotatedEdges
from dens_plugin.nn.so2.tf32 import backward_as_forward


def messages(
    nodes: torch.Tensor,
    radial: Radial | None,
    weights: Weights,
    edges: RotatedEdges,
    dtype: torch.dtype,
    *,
    num_scalars: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first convolution of every edge.

    Args:
        nodes: (N, (lmax + 1)^2, C) features.
        radial: factors of 2C channels; None for none.
        weights: of the convolution, from 2C channels.
        edges: E of them.
        dtype: precision of an edge's features.
        num_scalars: how many of the X outputs to return apart.

    Returns:
        (E, num_scalars) and (E, X - num_scalars + S C').
    """
    nodes, weights = nodes.to(dtype), weights.to(dtype)
    radial = None if radial is None else radial.to(dtype)
    if machine_for(nodes) is Machine.TRITON:
        return fused_messages(nodes, radial, weights, edges, num_scalars)
    if not torch.is_grad_enabled():
        return _split(_convolved(nodes, radial, weights, edges), num_scalars)
    tensors = nodes, weights.bias, *weights.orders, *(radial or ())
    out: tuple[torch.Tensor, torch.Tensor] = _Messages.apply(edges, len(weights.orders), num_scalars, *tensors)
    return out


def _convolved(nodes: torch.Tensor, radial: Radial | None, weights: Weights, edges: RotatedEdges) -> torch.Tensor:
    """`messages`; autograd does not see it."""
    out = nodes.new_empty(len(edges.source), weights.width)
    inputs = _inputs(nodes, radial, edges)
    for piece in edges.pieces:
        write_product(inputs.by_order(piece), weights, edges.layout, out[piece.edges])
    return out


@backward_as_forward
class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: RotatedEdges,
        num_orders: int,
        num_scalars: int,
        nodes: torch.Tensor,
        bias: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, radial = _parse(bias, rest, num_orders)
        out = _split(_convolved(nodes, radial, weights, edges), num_scalars)
        ctx.save_for_backward(nodes, bias, *rest)
        ctx.edges, ctx.num_orders = edges, num_orders
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_scalars: torch.Tensor, of_others: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        nodes, bias, *rest = ctx.saved_tensors
        edges = ctx.edges
        weights, radial = _parse(bias, rest, ctx.num_orders)
        gradient, inputs = Gradient(weights, edges.layout), _inputs(nodes, radial, edges)
        for piece in edges.pieces:
            scalars, others, features = of_scalars[piece.edges], of_others[piece.edges], inputs.of(piece)
            gradient.write(others, features, features, scalars)
            inputs.add_gradient(features, piece)
        of_nodes, *of_radial = inputs.gradients()
        return None, None, None, of_nodes, *gradient.of_weights(), *of_radial


def _split(convolved: torch.Tensor, num_scalars: int) -> tuple[torch.Tensor, torch.Tensor]:
    return convolved[:, :num_scalars], convolved[:, num_scalars:]


def _inputs(nodes: torch.Tensor, radial: Radial | None, edges: RotatedEdges) -> Inputs:
    return (LoopInputs if machine_for(nodes, edges.packed) is Machine.CPU else PlainInputs)(nodes, radial, edges)


def _parse(bias: torch.Tensor, rest: Sequence[torch.Tensor], num_orders: int) -> tuple[Weights, Radial | None]:
    """What `messages` gave to autograd one by one."""
    radial = Radial(*rest[num_orders:]) if len(rest) > num_orders else None
    return Weights(bias, rest[:num_orders]), radial
