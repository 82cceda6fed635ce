r"""Norms of an atom's features, and their gradients, in one pass: `dens_plugin.nn.equiformer_v2.degree_norm`.

.. math:: y_{ic} = s_i \, d_{ic} \, a_{l(i) c} + [i = 0] \, b_c, \qquad
    s = \Big(\sum_{ic} w_i d_{ic}^2 + \epsilon\Big)^{-1/2}

A program holds all features of an atom, 49 x 128 at the published size. Backward, with the gradient g of y,

.. math:: \mathrm{d}d_{ic} = s_i \, g_{ic} a_{l(i) c} - s_i^3 w_i d_{ic} \sum_{jk} g_{jk} a_{l(j) k} d_{jk}

and a program goes through some atoms, so that the gradients of a and b are sums over few programs, in a fixed order.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl
from dens_plugin.nn.backends.triton.tiles import PROGRAMS, power_of_two


def normed(
    features: torch.Tensor,
    balance: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    bias: torch.Tensor,
    *,
    is_separate: bool,
) -> torch.Tensor:
    """(N, L, C) in float32.

    Args:
        features: (N, L, C).
        balance: (L + 1,) weights of the squares, and eps.
        weights: (C,) of degree 0, and (lmax, C) of the others.
        bias: (C,).
        is_separate: whether degree 0 has a sum of its own.
    """
    features = features.contiguous()
    out = torch.empty_like(features)
    tensors = (features, balance, *(weight.contiguous() for weight in weights), bias, out)
    launch(_forward_kernel, (len(features),), tensors, **_constants(features, is_separate))
    return out


def normed_backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    balance: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    *,
    is_separate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the features (N, L, C), and of all weights and the bias, (lmax + 2, C)."""
    features, constants = features.contiguous(), _constants(features, is_separate)
    atoms, programs = len(features), min(len(features), PROGRAMS)
    out = torch.empty_like(features)
    partial = balance.new_empty(programs, constants["lmax"] + 2, features.shape[2])
    tensors = (grad.contiguous(), features, balance, *(weight.contiguous() for weight in weights), out, partial)
    launch(_backward_kernel, (programs,), (*tensors, atoms), **constants)
    return out, partial.sum(0)


def _constants(features: torch.Tensor, is_separate: bool) -> dict[str, Any]:
    components, channels = features.shape[1:]
    return {
        "lmax": math.isqrt(components) - 1,
        "channels": channels,
        "rows": power_of_two(components),
        "block": power_of_two(channels),
        "is_separate": is_separate,
        "num_warps": 8,
    }


@jit
def _of_degrees(first, others, lmax: constexpr, channels: constexpr, rows: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Weights of all components (rows, block)."""
    i = tl.arange(0, rows)
    degree = tl.zeros((rows,), tl.int32)
    for k in tl.static_range(1, lmax + 1):
        degree += (i >= k * k).to(tl.int32)
    c = tl.arange(0, block)[None, :]
    inside = (c < channels) & (i[:, None] > 0) & (i[:, None] < (lmax + 1) * (lmax + 1))
    a = tl.load(others + (degree[:, None] - 1) * channels + c, mask=inside, other=0.0)
    of_scalars = tl.load(first + c, mask=c < channels, other=0.0)
    return degree, tl.where(i[:, None] == 0, of_scalars, a)


@jit
def _centered(x, channels: constexpr, rows: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Degree 0 without its mean, and without what rounding left of it."""
    i, c = tl.arange(0, rows)[:, None], tl.arange(0, block)[None, :]
    scalars = (i == 0) & (c < channels)
    x = tl.where(scalars, x - tl.sum(tl.sum(tl.where(scalars, x, 0.0), axis=1), axis=0) / channels, x)
    return tl.where(scalars, x - tl.sum(tl.sum(tl.where(scalars, x, 0.0), axis=1), axis=0) / channels, x)


@jit
def _totals(x, is_separate: constexpr, rows: constexpr):  # type: ignore[no-untyped-def]
    """Sums over components and channels, (rows, 1): of all, or of degree 0 and of the others apart."""
    i = tl.arange(0, rows)
    by_row = tl.sum(x, axis=1)
    total = tl.sum(by_row, axis=0)
    if is_separate:
        first = tl.sum(tl.where(i == 0, by_row, 0.0), axis=0)
        others = tl.sum(tl.where(i == 0, 0.0, by_row), axis=0)
        return tl.where(i == 0, first, others)[:, None]
    else:  # noqa: RET505  (compiled by Triton, which knows no early return)
        return tl.where(i == 0, total, total)[:, None]


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    features,
    balance,
    first,
    others,
    bias,
    out,
    lmax: constexpr,
    channels: constexpr,
    rows: constexpr,
    block: constexpr,
    is_separate: constexpr,
):
    components: constexpr = (lmax + 1) * (lmax + 1)
    i, c = tl.arange(0, rows), tl.arange(0, block)[None, :]
    inside = (i[:, None] < components) & (c < channels)
    at = tl.program_id(0).to(tl.int64) * (components * channels) + i[:, None] * channels + c
    d = _centered(tl.load(features + at, mask=inside, other=0.0).to(tl.float32), channels, rows, block)
    w = tl.load(balance + i, mask=i < components, other=0.0)[:, None]
    s = 1.0 / tl.sqrt(_totals(w * d * d, is_separate, rows) + tl.load(balance + components))
    _, a = _of_degrees(first, others, lmax, channels, rows, block)
    b = tl.load(bias + c, mask=c < channels, other=0.0)
    y = d * s * a + tl.where(i[:, None] == 0, b, 0.0)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad,
    features,
    balance,
    first,
    others,
    out,
    partial,
    atoms,
    lmax: constexpr,
    channels: constexpr,
    rows: constexpr,
    block: constexpr,
    is_separate: constexpr,
):
    components: constexpr = (lmax + 1) * (lmax + 1)
    i, c = tl.arange(0, rows), tl.arange(0, block)[None, :]
    inside = (i[:, None] < components) & (c < channels)
    w = tl.load(balance + i, mask=i < components, other=0.0)[:, None]
    eps = tl.load(balance + components)
    degree, a = _of_degrees(first, others, lmax, channels, rows, block)
    of_weight = tl.zeros((rows, block), tl.float32)
    of_bias = tl.zeros((1, block), tl.float32)
    for atom in range(tl.program_id(0).to(tl.int64), atoms, tl.num_programs(0)):
        at = atom * (components * channels) + i[:, None] * channels + c
        d = _centered(tl.load(features + at, mask=inside, other=0.0).to(tl.float32), channels, rows, block)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        s = 1.0 / tl.sqrt(_totals(w * d * d, is_separate, rows) + eps)
        of_weight += s * g * d
        of_bias += tl.sum(tl.where(i[:, None] == 0, g, 0.0), axis=0, keep_dims=True)
        inner = _totals(g * a * d, is_separate, rows)
        y = _centered(s * g * a - s * s * s * inner * w * d, channels, rows, block)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
    base = partial + tl.program_id(0) * ((lmax + 2) * channels) + c
    for k in tl.static_range(lmax + 1):
        total = tl.sum(tl.where((degree == k)[:, None], of_weight, 0.0), axis=0, keep_dims=True)
        tl.store(base + k * channels, total, mask=c < channels)
    tl.store(base + (lmax + 1) * channels, of_bias, mask=c < channels)
