r"""Attention logits of an edge: a layer norm of each head's channels, a smooth leaky ReLU, a product with a vector.

.. math:: z_{eh} = \sum_a w_{ha} \, f(\hat x_{eha} g_a + b_a), \qquad f(y) = s y + (1 - s) \, \mathrm{silu}(y)

EquiformerV2, arXiv:2306.12059. A program takes some edges and one head; backward it goes through several groups, so
that the gradients of g, b and w are sums over few programs, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl
from dens_plugin.nn.backends.triton.tiles import PROGRAMS, power_of_two

_EDGES = 16  # at once


def attention_logits(
    scalars: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor, float], vectors: torch.Tensor, slope: float
) -> torch.Tensor:
    """(E, H) in float32.

    Args:
        scalars: (E, H A), whose rows may be parts of longer ones.
        norm: weight (A,) and bias (A,) of the layer norm, and its eps.
        vectors: (H, A), w.
        slope: s, of the leaky ReLU for negative numbers.
    """
    weight, bias, eps = norm
    out: torch.Tensor = _AttentionLogits.apply(scalars, weight, bias, vectors, eps, slope)
    return out


class _AttentionLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scalars: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        vectors: torch.Tensor,
        eps: float,
        slope: float,
    ) -> torch.Tensor:
        scalars = scalars if scalars.stride(1) == 1 else scalars.contiguous()
        ctx.save_for_backward(scalars, weight, bias, vectors)
        ctx.constants = {"eps": eps, "slope": slope}
        out = scalars.new_empty(len(scalars), len(vectors), dtype=torch.float32)
        _launch(_forward_kernel, -(-len(scalars) // _EDGES), (scalars, weight, bias, vectors, out), ctx.constants)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scalars, weight, bias, vectors = ctx.saved_tensors
        programs = min(-(-len(scalars) // _EDGES), PROGRAMS)
        of_scalars = scalars.new_empty(scalars.shape)
        partial = weight.new_empty(programs, 3, *vectors.shape)
        tensors = (scalars, weight, bias, vectors, grad.contiguous(), of_scalars, partial)
        _launch(_backward_kernel, programs, tensors, ctx.constants)
        sums = partial.sum(0)  # (3, H, A)
        of_weight, of_bias = sums[:2].sum(1)
        return of_scalars, of_weight, of_bias, sums[2], None, None


def _launch(kernel: Any, programs: int, tensors: tuple[torch.Tensor, ...], constants: dict[str, float]) -> None:
    scalars, (heads, channels) = tensors[0], tensors[3].shape
    sizes = {"heads": heads, "channels": channels, "rows": _EDGES, "block": power_of_two(channels)}
    launch(kernel, (programs, heads), (*tensors, len(scalars), scalars.stride(0)), **sizes, **constants)


@jit
def _normed(scalars, edge, head, edges, stride, channels: constexpr, block: constexpr, eps: constexpr):  # type: ignore[no-untyped-def]
    """Channels of some edges (rows, 1) without their mean over their spread, that spread's inverse, which exist."""
    a = tl.arange(0, block)[None, :]
    inside = (edge < edges) & (a < channels)
    x = tl.load(scalars + edge * stride + head * channels + a, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, x - (tl.sum(x, axis=1) / channels)[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / channels + eps)
    return x * inverse[:, None], inverse, inside


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    scalars,
    weight,
    bias,
    vectors,
    out,
    edges,
    stride,
    heads: constexpr,
    channels: constexpr,
    rows: constexpr,
    block: constexpr,
    eps: constexpr,
    slope: constexpr,
):
    head = tl.program_id(1)
    edge = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)
    a = tl.arange(0, block)
    x, _, _ = _normed(scalars, edge[:, None], head, edges, stride, channels, block, eps)
    g = tl.load(weight + a, mask=a < channels, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + a, mask=a < channels, other=0.0).to(tl.float32)[None, :]
    w = tl.load(vectors + head * channels + a, mask=a < channels, other=0.0).to(tl.float32)[None, :]
    y = x * g + b
    z = tl.sum(w * y * (slope + (1.0 - slope) / (1.0 + tl.exp(-y))), axis=1)
    tl.store(out + edge * heads + head, z, mask=edge < edges)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    scalars,
    weight,
    bias,
    vectors,
    grad,
    of_scalars,
    partial,
    edges,
    stride,
    heads: constexpr,
    channels: constexpr,
    rows: constexpr,
    block: constexpr,
    eps: constexpr,
    slope: constexpr,
):
    head = tl.program_id(1)
    a = tl.arange(0, block)
    g = tl.load(weight + a, mask=a < channels, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + a, mask=a < channels, other=0.0).to(tl.float32)[None, :]
    w = tl.load(vectors + head * channels + a, mask=a < channels, other=0.0).to(tl.float32)[None, :]
    of_weight = tl.zeros((rows, block), tl.float32)
    of_bias = tl.zeros((rows, block), tl.float32)
    of_vector = tl.zeros((rows, block), tl.float32)
    for first in range(tl.program_id(0) * rows, edges, tl.num_programs(0) * rows):
        edge = (first + tl.arange(0, rows)).to(tl.int64)
        x, inverse, inside = _normed(scalars, edge[:, None], head, edges, stride, channels, block, eps)
        dz = tl.load(grad + edge * heads + head, mask=edge < edges, other=0.0).to(tl.float32)[:, None]
        y = x * g + b
        sigmoid = 1.0 / (1.0 + tl.exp(-y))
        dy = dz * w * (slope + (1.0 - slope) * sigmoid * (1.0 + y * (1.0 - sigmoid)))
        of_vector += dz * y * (slope + (1.0 - slope) * sigmoid)
        of_weight += dy * x
        of_bias += dy
        dx = dy * g
        mean, product = tl.sum(dx, axis=1) / channels, tl.sum(dx * x, axis=1) / channels
        dx = inverse[:, None] * (dx - mean[:, None] - x * product[:, None])
        at = of_scalars + edge[:, None] * (heads * channels) + head * channels + a[None, :]
        tl.store(at, dx.to(of_scalars.dtype.element_ty), mask=inside)
    base = partial + (tl.program_id(0) * 3 * heads + head) * channels + a
    tl.store(base, tl.sum(of_weight, axis=0), mask=a < channels)
    tl.store(base + heads * channels, tl.sum(of_bias, axis=0), mask=a < channels)
    tl.store(base + 2 * heads * channels, tl.sum(of_vector, axis=0), mask=a < channels)
