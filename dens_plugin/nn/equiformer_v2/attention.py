"""From the first convolution of the edges to their sum at the nodes: activate, convolve, weigh, rotate back, add.

    x_n = sum over edges e of n:  D_e^T ( a_e * conv( act(y_e) ) )        (M, L, H V)  from  (E, X + S C)

with attention weights a (E, H), a head's for its V channels. EquiformerV2, arXiv:2306.12059; convolution of eSCN,
arXiv:2302.03655.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.triton import softmax_by_target as kernels
from dens_plugin.nn.equiformer_v2.convolution import Gradient, Weights, write_product
from dens_plugin.nn.equiformer_v2.fused import fused_weighted_sum
from dens_plugin.nn.so2 import by_loops
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import Piece, RotatedEdges
from dens_plugin.nn.so2.rotation import collect, expand
from dens_plugin.nn.so2.tf32 import backward_as_forward


def softmax_by_target(logits: torch.Tensor, edges: RotatedEdges) -> torch.Tensor:
    """(E, H) softmax of (E, H) over the edges of every target."""
    if machine_for(logits) is Machine.TRITON:
        return kernels.softmax_by_target(logits, edges.offsets)
    degrees = {piece.degree for piece in edges.pieces}
    degree = degrees.pop() if len(degrees) == 1 else None
    if degree is None or degree * len(edges.targets) != len(logits):  # pieces leave out targets without an edge
        return _softmax_by_scattering(logits, edges)
    return logits.view(-1, degree, logits.shape[1]).softmax(1).view_as(logits)


def weighted_sum(
    activated: torch.Tensor, attention: torch.Tensor, weights: Weights, edges: RotatedEdges
) -> torch.Tensor:
    """Sum of the values of the edges of every target, in the nodes' frame.

    Args:
        activated: (E, S, C) features of the first convolution behind their activation.
        attention: (E, H) weights of the heads.
        weights: of the second convolution, to H V channels.
        edges: E of them, to M targets.

    Returns:
        (M, (lmax + 1)^2, H V), float32 or better.
    """
    weights = weights.to(activated.dtype)
    if machine_for(activated) is Machine.TRITON:
        return fused_weighted_sum(activated, attention, weights, edges)
    if not torch.is_grad_enabled():
        return _sum(activated, attention, weights, edges)
    out: torch.Tensor = _WeightedSum.apply(edges, activated, attention, weights.bias, *weights.orders)
    return out


def vector_sum(activated: torch.Tensor, attention: torch.Tensor, weights: Weights, edges: RotatedEdges) -> torch.Tensor:
    """Degree 1 of a sum with one channel: a vector head, whose last projection is folded into ``weights``.

    Args:
        activated: (E, S, C), as for `weighted_sum`.
        attention: (E, H) weights of the heads.
        weights: of the second convolution's outputs of degree 1, a channel for each head: (H, (lmax + 1) C) of m = 0,
            and (2 H, lmax C) of m = 1 unless mmax is 0.
        edges: E of them, to M targets.

    Returns:
        (M, 3) coefficients of degree 1.
    """
    values = _vector_values(activated, weights.to(activated.dtype), edges.layout)
    messages = (values * attention[:, None]).sum(2) * edges.scale[1]  # (E, 1 or 3)
    rotation = _of_degree_one(edges.packed, edges.layout)
    vectors = torch.einsum("ei,eij->ej", messages.to(rotation.dtype), rotation)
    return vectors.new_zeros(len(edges.targets), 3).index_add(0, edges.row, vectors)


def _sum(
    activated: torch.Tensor,
    attention: torch.Tensor,
    weights: Weights,
    edges: RotatedEdges,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """`weighted_sum`, which writes the values (E, S H V) where it is told to; autograd does not see it."""
    out = attention.new_zeros(len(edges.targets), (edges.layout.lmax + 1) ** 2, weights.width // len(edges.layout))
    for piece in edges.pieces:
        inputs = activated[piece.edges]
        of_piece = inputs.new_empty(len(inputs), weights.width) if values is None else values[piece.edges]
        write_product(edges.layout.orders_of(inputs), weights, edges.layout, of_piece)
        _collect_weighed(of_piece, attention[piece.edges], edges, piece, out)
    return out


@backward_as_forward
class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: RotatedEdges,
        activated: torch.Tensor,
        attention: torch.Tensor,
        bias: torch.Tensor,
        *orders: torch.Tensor,
    ) -> torch.Tensor:
        weights = Weights(bias, orders)
        values = activated.new_empty(len(activated), weights.width)
        out = _sum(activated, attention, weights, edges, values)
        ctx.save_for_backward(activated, attention, values, bias, *orders)
        ctx.edges = edges
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        activated, attention, values, bias, *orders = ctx.saved_tensors
        edges = ctx.edges
        gradient = Gradient(Weights(bias, orders), edges.layout)
        grad_activated = activated.new_empty(activated.shape)  # in rows, whatever the order of the features in memory
        grad_attention = torch.empty_like(attention)
        for piece in edges.pieces:
            of_piece = piece.edges
            grad_values, grad_attention[of_piece] = _weighed_backward(
                grad, values[of_piece], attention[of_piece], edges, piece
            )
            gradient.write(grad_values.flatten(1), activated[of_piece], grad_activated[of_piece])
        return None, grad_activated, grad_attention, *gradient.of_weights()


def _softmax_by_scattering(logits: torch.Tensor, edges: RotatedEdges) -> torch.Tensor:
    """For targets with different numbers of edges."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lowest = wide.new_full((len(edges.targets), logits.shape[1]), -torch.inf)
    index = edges.row[:, None].expand(-1, logits.shape[1])
    largest = lowest.scatter_reduce(0, index, wide.detach(), "amax")  # (M, H)
    terms = (wide - largest[edges.row]).exp()
    sums = torch.zeros_like(lowest).index_add(0, edges.row, terms)
    return (terms / sums[edges.row]).to(logits.dtype)


def _collect_weighed(
    values: torch.Tensor, attention: torch.Tensor, edges: RotatedEdges, piece: Piece, out: torch.Tensor
) -> None:
    """Add the sums of the values (e, S H V) of a piece, weighed with (e, H), to (M, (lmax + 1)^2, H V)."""
    if machine_for(values, attention, edges.packed) is Machine.CPU:
        by_loops.collect(values.view(len(values), len(edges.layout), -1), edges, piece, out, attention)
    else:
        collect(_weigh(values, attention, edges.scale), edges, piece, out)


def _weighed_backward(
    grad: torch.Tensor, values: torch.Tensor, attention: torch.Tensor, edges: RotatedEdges, piece: Piece
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of values (e, S, H V) and attention (e, H) from that of the sums of all targets."""
    values = values.view(len(values), len(edges.layout), -1)
    if machine_for(grad, values, attention, edges.packed) is Machine.CPU:
        return by_loops.collect_backward(grad, values, attention, edges, piece)
    grad_messages = expand(grad, edges, piece).to(values.dtype)
    of_attention = _attention_backward(grad_messages, values, edges.scale, attention.shape[1])
    return _weigh(grad_messages, attention, edges.scale), of_attention


def _weigh(values: torch.Tensor, attention: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(e, S, H V) values times the attention (e, H) of their head and the scale (S,) of their degree."""
    factors = (attention[:, None] * scale[:, None]).to(values.dtype)  # (e, S, H)
    heads = values.view(*factors.shape, -1)
    return (heads * factors[..., None]).flatten(2)


def _attention_backward(grad: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, heads: int) -> torch.Tensor:
    """(e, H) from the gradient (e, S, H V) of the weighed values."""
    of_heads = (grad * values.view_as(grad)).unflatten(2, (heads, -1)).sum(3)
    return (of_heads * scale[:, None]).sum(1)


def _vector_values(activated: torch.Tensor, weights: Weights, layout: Layout) -> torch.Tensor:
    """(E, 1 or 3, H) values of degree 1: of m = 0, 1 and -1."""
    zero = functional.linear(activated[:, : layout.degrees_of(0)].flatten(1), weights.orders[0], weights.bias)
    if layout.mmax == 0:
        return zero[:, None]
    first, size = layout.start_of(1), layout.degrees_of(1)
    pairs = activated[:, first : first + 2 * size].unflatten(1, (2, size)).flatten(2) @ weights.orders[1].t()
    (a, b), (c, d) = (pair.chunk(2, dim=1) for pair in pairs.unbind(1))  # (a + i b) + i (c + i d)
    return torch.stack([zero, a - d, c + b], dim=1)


def _of_degree_one(packed: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(E, 1 or 3, 3) the rows of m = 0, 1 and -1, by slices: a list of them would be copied to a GPU."""
    orders = (0,) if layout.mmax == 0 else (0, 1, -1)
    starts = [layout.packed_starts[layout.coefficients.index((1, m))] for m in orders]
    return torch.stack([packed[:, start : start + 3] for start in starts], dim=1)
