r"""A layer of a radial function: layer norm and SiLU of an edge's numbers, to which its elements' may be added first.

.. math:: y_{ek} = \mathrm{silu}(\hat x_{ek} g_k + b_k), \qquad x_{ek} \mathrel{+}= s_{z(e) k} + t_{z'(e) k}

with rows s of the source's and t of the target's element. A program takes some edges; backward it goes through several
such groups, so that the gradients of g and b are sums over few programs, in a fixed order. Those of the tables are a
product with a matrix of ones where an edge has an element, for the same reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl
from dens_plugin.nn.backends.triton.tiles import PROGRAMS, power_of_two

_EDGES = 16  # at once


class Elements(NamedTuple):
    """Of the edges' ends.

    Attributes:
        numbers: (2, E) of sources and of targets.
        ones: (E, 2 Z), one where an edge has an element, sources first.
    """

    numbers: torch.Tensor
    ones: torch.Tensor

    @classmethod
    def of(cls, numbers: torch.Tensor, count: int, dtype: torch.dtype) -> Elements:
        """Of ends (2, E), of so many elements."""
        known = torch.arange(count, device=numbers.device)
        ones = (numbers.t()[:, :, None] == known).flatten(1)
        return cls(numbers.contiguous(), ones.to(dtype))


def norm_silu(
    features: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor, float],
    tables: tuple[torch.Tensor, torch.Tensor] | None = None,
    elements: Elements | None = None,
) -> torch.Tensor:
    """(E, K) of the features' type, computed in float32.

    Args:
        features: (E, K).
        norm: weight (K,) and bias (K,) of the layer norm, and its eps.
        tables: (Z, K) of sources and of targets, if rows of these are to be added.
        elements: of the edges, with tables.
    """
    weight, bias, eps = norm
    both = (None, None, None, None) if tables is None or elements is None else (*tables, *elements)
    out: torch.Tensor = _NormSilu.apply(features, weight, bias, eps, *both)
    return out


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        sources: torch.Tensor | None,
        targets: torch.Tensor | None,
        numbers: torch.Tensor | None,
        ones: torch.Tensor | None,
    ) -> torch.Tensor:
        features = features.contiguous()
        ctx.save_for_backward(features, weight, bias, sources, targets, numbers, ones)
        ctx.eps = eps
        out = torch.empty_like(features)
        tables = _or(features, sources, targets, numbers)
        tensors = (features, weight, bias, *tables, out)
        _launch(_forward_kernel, -(-len(features) // _EDGES), tensors, eps, has_tables=numbers is not None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight, bias, sources, targets, numbers, ones = ctx.saved_tensors
        programs = min(-(-len(features) // _EDGES), PROGRAMS)
        out, partial = torch.empty_like(features), weight.new_empty(programs, 2, features.shape[1])
        tables = _or(features, sources, targets, numbers)
        tensors = (features, weight, bias, *tables, grad.contiguous(), out, partial)
        _launch(_backward_kernel, programs, tensors, ctx.eps, has_tables=numbers is not None)
        of_tables: tuple[torch.Tensor | None, ...] = (None, None)
        if ones is not None:
            of_tables = (ones.t() @ out).chunk(2)
        of_weight, of_bias = partial.sum(0)
        return out, of_weight, of_bias, None, *of_tables, None, None


def _or(instead: torch.Tensor, *tensors: torch.Tensor | None) -> list[torch.Tensor]:
    return [instead if tensor is None else tensor.contiguous() for tensor in tensors]


def _launch(kernel: Any, programs: int, tensors: tuple[torch.Tensor, ...], eps: float, *, has_tables: bool) -> None:
    edges, channels = tensors[0].shape
    sizes = {"channels": channels, "rows": _EDGES, "block": power_of_two(channels)}
    launch(kernel, (programs,), (*tensors, edges), **sizes, eps=eps, has_tables=has_tables)


@jit
def _normed(  # type: ignore[no-untyped-def]
    features,
    sources,
    targets,
    numbers,
    edge,
    edges,
    channels: constexpr,
    block: constexpr,
    eps: constexpr,
    has_tables: constexpr,
):
    """Numbers of some edges (rows,) without their mean over their spread, that spread's inverse, which exist."""
    k = tl.arange(0, block)[None, :]
    inside = (edge < edges)[:, None] & (k < channels)
    x = tl.load(features + edge[:, None] * channels + k, mask=inside, other=0.0).to(tl.float32)
    if has_tables:
        source = tl.load(numbers + edge, mask=edge < edges, other=0)[:, None]
        target = tl.load(numbers + edges + edge, mask=edge < edges, other=0)[:, None]
        x += tl.load(sources + source * channels + k, mask=inside, other=0.0).to(tl.float32)
        x += tl.load(targets + target * channels + k, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, x - (tl.sum(x, axis=1) / channels)[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / channels + eps)
    return x * inverse[:, None], inverse, inside


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    features,
    weight,
    bias,
    sources,
    targets,
    numbers,
    out,
    edges,
    channels: constexpr,
    rows: constexpr,
    block: constexpr,
    eps: constexpr,
    has_tables: constexpr,
):
    edge = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)
    k = tl.arange(0, block)
    x, _, inside = _normed(features, sources, targets, numbers, edge, edges, channels, block, eps, has_tables)
    g = tl.load(weight + k, mask=k < channels, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + k, mask=k < channels, other=0.0).to(tl.float32)[None, :]
    y = x * g + b
    y = y / (1.0 + tl.exp(-y))
    tl.store(out + edge[:, None] * channels + k[None, :], y.to(out.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    features,
    weight,
    bias,
    sources,
    targets,
    numbers,
    grad,
    out,
    partial,
    edges,
    channels: constexpr,
    rows: constexpr,
    block: constexpr,
    eps: constexpr,
    has_tables: constexpr,
):
    k = tl.arange(0, block)
    g = tl.load(weight + k, mask=k < channels, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + k, mask=k < channels, other=0.0).to(tl.float32)[None, :]
    of_weight = tl.zeros((rows, block), tl.float32)
    of_bias = tl.zeros((rows, block), tl.float32)
    for first in range(tl.program_id(0) * rows, edges, tl.num_programs(0) * rows):
        edge = (first + tl.arange(0, rows)).to(tl.int64)
        x, inverse, inside = _normed(features, sources, targets, numbers, edge, edges, channels, block, eps, has_tables)
        at = edge[:, None] * channels + k[None, :]
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        y = x * g + b
        sigmoid = 1.0 / (1.0 + tl.exp(-y))
        dy *= sigmoid * (1.0 + y * (1.0 - sigmoid))
        of_weight += dy * x
        of_bias += dy
        dx = dy * g
        mean, product = tl.sum(dx, axis=1) / channels, tl.sum(dx * x, axis=1) / channels
        dx = inverse[:, None] * (dx - mean[:, None] - x * product[:, None])
        tl.store(out + at, dx.to(out.dtype.element_ty), mask=inside)
    base = partial + tl.program_id(0) * (2 * channels) + k
    tl.store(base, tl.sum(of_weight, axis=0), mask=k < channels)
    tl.store(base + channels, tl.sum(of_bias, axis=0), mask=k < channels)
