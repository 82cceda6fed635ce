r"""Coefficients of +m and -m, spread into the three factors of a complex product by three real ones, and joined again.

.. math:: p_{m} = (x_m + x_{-m}, \; \pm x_{-m}, \; x_m) \qquad y_m = q_0 \pm q_1, \quad y_{-m} = q_0 + q_2

The three planes of an order stand side by side, so that one batched product multiplies all of them with their matrices.
Backward the same with m and -m in each other's place (`is_conjugate`).
"""

from __future__ import annotations

import torch

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl
from dens_plugin.nn.so2.layout import Layout

_BLOCK = 512


def spread(features: torch.Tensor, layout: Layout, channels: int, *, is_conjugate: bool) -> torch.Tensor:
    """(E, 3 n C summed over the orders m > 0) planes of the last columns (2 n C of each order) of features (E, ...)."""
    pairs = pairs_of(layout, channels)
    out = features.new_empty(len(features), 3 * pairs)
    _launch(_spread_kernel, features, features.shape[1] - 2 * pairs, out, layout, channels, is_conjugate)
    return out


def join(planes: torch.Tensor, layout: Layout, channels: int, out: torch.Tensor, *, is_conjugate: bool) -> None:
    """Write the coefficients of the orders m > 0 into the last columns of ``out`` (E, ...)."""
    _launch(_join_kernel, out, out.shape[1] - 2 * pairs_of(layout, channels), planes, layout, channels, is_conjugate)


def pairs_of(layout: Layout, channels: int) -> int:
    """How many numbers the coefficients of all m > 0 are, those of -m not counted."""
    return (len(layout) - layout.degrees_of(0)) // 2 * channels


def _launch(
    kernel: object,
    features: torch.Tensor,
    first: int,
    planes: torch.Tensor,
    layout: Layout,
    channels: int,
    is_conjugate: bool,
) -> None:
    assert features.stride(1) == 1, "an edge's features must stand together"
    pairs = pairs_of(layout, channels)
    constants = {"pairs": pairs, "channels": channels, "lmax": layout.lmax, "mmax": layout.mmax, "block": _BLOCK}
    arguments = (features, planes, features.stride(0), first)
    launch(kernel, (len(planes), -(-pairs // _BLOCK)), arguments, is_conjugate=is_conjugate, **constants)


@jit
def _places(  # type: ignore[no-untyped-def]
    features,
    planes,
    stride,
    first,
    pairs: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    block: constexpr,
):
    """Of this program's pairs: addresses of +m, of the first plane, distances to -m and between planes, what exists."""
    edge = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * block + tl.arange(0, block)
    before = tl.zeros((block,), tl.int32)  # pairs of lower orders
    size = tl.zeros((block,), tl.int32) + lmax * channels
    for m in tl.static_range(2, mmax + 1):
        start = ((m - 1) * (lmax + 1) - m * (m - 1) // 2) * channels
        before = tl.where(pair >= start, start, before)
        size = tl.where(pair >= start, (lmax + 1 - m) * channels, size)
    plus = features + edge * stride + first + before + pair
    plane = planes + edge * (3 * pairs) + 2 * before + pair
    return plus, plane, size, pair < pairs


@jit
def _spread_kernel(  # type: ignore[no-untyped-def]
    features,
    planes,
    stride,
    first,
    pairs: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    block: constexpr,
    is_conjugate: constexpr,
):
    plus, plane, size, inside = _places(features, planes, stride, first, pairs, channels, lmax, mmax, block)
    x = tl.load(plus, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(plus + size, mask=inside, other=0.0).to(tl.float32)
    kind = planes.dtype.element_ty
    tl.store(plane, (x + y).to(kind), mask=inside)
    if is_conjugate:
        tl.store(plane + size, (-x).to(kind), mask=inside)
        tl.store(plane + 2 * size, y.to(kind), mask=inside)
    else:
        tl.store(plane + size, y.to(kind), mask=inside)
        tl.store(plane + 2 * size, x.to(kind), mask=inside)


@jit
def _join_kernel(  # type: ignore[no-untyped-def]
    features,
    planes,
    stride,
    first,
    pairs: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    block: constexpr,
    is_conjugate: constexpr,
):
    plus, plane, size, inside = _places(features, planes, stride, first, pairs, channels, lmax, mmax, block)
    p = tl.load(plane, mask=inside, other=0.0).to(tl.float32)
    q = tl.load(plane + size, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(plane + 2 * size, mask=inside, other=0.0).to(tl.float32)
    kind = features.dtype.element_ty
    if is_conjugate:
        tl.store(plus, (p + r).to(kind), mask=inside)
        tl.store(plus + size, (p + q).to(kind), mask=inside)
    else:
        tl.store(plus, (p - q).to(kind), mask=inside)
        tl.store(plus + size, (p + r).to(kind), mask=inside)
