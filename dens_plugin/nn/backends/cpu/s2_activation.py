"""SiLU on a grid of the sphere, whose values never leave a core's first caches.

    y = F^T silu(G x),        G = longitude x latitude, and so F    (`dens_plugin.nn.so2.grid_matrix`)

A thread takes an edge, goes to all latitudes for each of K orders, from there to one longitude after the other, and
adds what the activation gives to the sums of the way back. If the activation is separable (EquiformerV2,
arXiv:2306.12059), degree 0 is the SiLU of a gate instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from dens_plugin.nn.backends.cpu.silu import bounded, one_plus_exp, silu, silu_derivative, silu_derivative_from
from dens_plugin.nn.backends.cpu.sums import write_sum
from dens_plugin.nn.backends.cpu.team import (
    ARGUMENTS,
    FLOAT,
    Loop,
    compiled,
    floats,
    integers,
    named,
    rows_of_thread,
    scratch_of_thread,
    table_of,
    to_fixed_tuple,
    wide_vectors,
)

_ONE = np.float32(1)
ORDERS = (1, 3, 5, 7)  # numbers of signed orders K for which the loops are compiled


class Grid(NamedTuple):
    """A matrix from S coefficients to A longitudes and B latitudes, as a product.

    Attributes:
        latitude: (B, S); a coefficient has one order.
        coefficient: (S, B), its transpose.
        longitude: (A, K), A even; a row of zeros adds nothing, since then the activated value is zero.
        counts: (K,) int64, the number of coefficients of every order, which stand together.
    """

    latitude: torch.Tensor
    coefficient: torch.Tensor
    longitude: torch.Tensor
    counts: torch.Tensor


def grid_silu(features: torch.Tensor, gates: torch.Tensor | None, to_grid: Grid, from_grid: Grid) -> torch.Tensor:
    """Activated features (E, S, C).

    Args:
        features: (E, S, C), whose rows may be part of longer ones.
        gates: (E, C) for degree 0 instead of the grid, as far apart as the features; None for none.
        to_grid: of the way there.
        from_grid: of the way back.
    """
    out = features.new_empty(features.shape)
    arguments = _arguments(features, gates, to_grid, from_grid)
    scratch = 2 * len(to_grid.counts) * len(to_grid.latitude) * features.shape[2]
    _FORWARD.run(len(features), *arguments, out, scratch=scratch)
    return out


def grid_silu_backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    gates: torch.Tensor | None,
    to_grid: Grid,
    from_grid: Grid,
    of_features: torch.Tensor,
    of_gates: torch.Tensor | None,
) -> None:
    """Write the gradients of the features (E, S, C) and of the gates (E, C) from that of the result, (E, S, C)."""
    arguments = _arguments(features, gates, to_grid, from_grid)
    strides = of_features.stride(0), 0 if of_gates is None else of_gates.stride(0)
    places = grad.contiguous(), of_features, 0 if of_gates is None else of_gates
    scratch = 3 * len(to_grid.counts) * len(to_grid.latitude) * features.shape[2]
    _BACKWARD.run(len(features), *arguments, *places, *strides, scratch=scratch)


def _arguments(features: torch.Tensor, gates: torch.Tensor | None, to_grid: Grid, from_grid: Grid) -> tuple[Any, ...]:
    (_, size, channels), (points, orders) = features.shape, to_grid.longitude.shape
    sizes = size, channels, points, len(to_grid.latitude), orders
    strides = features.stride(0), 0 if gates is None else gates.stride(0)
    return *sizes, *strides, features, 0 if gates is None else gates, *to_grid, *from_grid


class _Table(NamedTuple):
    """What a loop reads of `_arguments`."""

    size: int
    channels: int
    longitudes: int
    latitudes: int
    orders: int
    stride: int
    gate_stride: int
    features: int
    gates: int


@compiled
def _read(t):  # type: ignore[no-untyped-def]
    i = ARGUMENTS
    return _Table(t[i], t[i + 1], t[i + 2], t[i + 3], t[i + 4], t[i + 5], t[i + 6], t[i + 7], t[i + 8])


@compiled
def _to_latitudes(features, latitude, counts, size, channels, latitudes, skipped, out):  # type: ignore[no-untyped-def]
    """Write the values (K, B, C) of features (S, C) without the first ``skipped``."""
    numbers = integers(counts, (8,))
    first, k = 0, 0
    while first < size:
        left_out = skipped if k == 0 else 0
        start, count = first + left_out, numbers[k] - left_out
        for b in range(latitudes):
            place = out + FLOAT * (k * latitudes + b) * channels
            weights = latitude + FLOAT * (b * size + start)
            write_sum(count, weights, features + FLOAT * start * channels, channels, place, channels)
        first += numbers[k]
        k += 1


@compiled
def _from_latitudes(sums, coefficient, counts, size, channels, latitudes, skipped, out):  # type: ignore[no-untyped-def]
    """Write coefficients (S, C), but for the first ``skipped``, of the sums (K, B, C)."""
    numbers = integers(counts, (8,))
    k, end = 0, numbers[0]
    for s in range(skipped, size):
        if s == end:
            k += 1
            end += numbers[k]
        of_order, weights = sums + FLOAT * k * latitudes * channels, coefficient + FLOAT * s * latitudes
        write_sum(latitudes, weights, of_order, channels, out + FLOAT * s * channels, channels)


def _activate(count: int) -> Any:
    """For K = ``count``, a constant that LLVM unrolls: add two longitudes' activated values, weighted, to ``sums``.

    Two, because then one division serves both: with r = 1 / (a b), 1 / a is r b and 1 / b is r a.
    """
    both = 2 * count

    @compiled
    @named(f"activate_{count}")
    def add(values, to_rows, from_rows, sums, width):  # type: ignore[no-untyped-def]
        wide_vectors()
        x, out = floats(values, (count, width)), floats(sums, (count, width))
        to, back = to_fixed_tuple(floats(to_rows, (both,)), both), to_fixed_tuple(floats(from_rows, (both,)), both)
        for i in range(width):
            first, second = to[0] * x[0, i], to[count] * x[0, i]
            for k in range(1, count):
                first += to[k] * x[k, i]
                second += to[count + k] * x[k, i]
            a, b = one_plus_exp(first), one_plus_exp(second)
            r = _ONE / (a * b)
            first, second = bounded(first) * (r * b), bounded(second) * (r * a)
            for k in range(count):
                out[k, i] += back[k] * first + back[count + k] * second

    return add


def _activate_backward(count: int) -> Any:
    """The same for gradients (K, B, C) of the activated values."""
    both = 2 * count

    @compiled
    @named(f"activate_backward_{count}")
    def add(values, grads, to_rows, from_rows, sums, width):  # type: ignore[no-untyped-def]
        wide_vectors()
        x, g, out = floats(values, (count, width)), floats(grads, (count, width)), floats(sums, (count, width))
        to, back = to_fixed_tuple(floats(to_rows, (both,)), both), to_fixed_tuple(floats(from_rows, (both,)), both)
        for i in range(width):
            first, second = to[0] * x[0, i], to[count] * x[0, i]
            of_first, of_second = back[0] * g[0, i], back[count] * g[0, i]
            for k in range(1, count):
                first += to[k] * x[k, i]
                second += to[count + k] * x[k, i]
                of_first += back[k] * g[k, i]
                of_second += back[count + k] * g[k, i]
            a, b = one_plus_exp(first), one_plus_exp(second)
            r = _ONE / (a * b)
            of_first *= silu_derivative_from(first, r * b)
            of_second *= silu_derivative_from(second, r * a)
            for k in range(count):
                out[k, i] += to[k] * of_first + to[count + k] * of_second

    return add


_activate_1, _activate_3, _activate_5, _activate_7 = (_activate(count) for count in ORDERS)
_backward_1, _backward_3, _backward_5, _backward_7 = (_activate_backward(count) for count in ORDERS)


@compiled
def _all_longitudes(points, orders, values, to_longitude, from_longitude, sums, width):  # type: ignore[no-untyped-def]
    floats(sums, (orders * width,))[:] = 0
    for a in range(0, points, 2):
        to_rows, from_rows = to_longitude + FLOAT * a * orders, from_longitude + FLOAT * a * orders
        if orders == 5:
            _activate_5(values, to_rows, from_rows, sums, width)
        elif orders == 7:
            _activate_7(values, to_rows, from_rows, sums, width)
        elif orders == 3:
            _activate_3(values, to_rows, from_rows, sums, width)
        else:
            _activate_1(values, to_rows, from_rows, sums, width)


@compiled
def _all_longitudes_backward(  # type: ignore[no-untyped-def]
    points, orders, values, grads, to_longitude, from_longitude, sums, width
):
    floats(sums, (orders * width,))[:] = 0
    for a in range(0, points, 2):
        to_rows, from_rows = to_longitude + FLOAT * a * orders, from_longitude + FLOAT * a * orders
        if orders == 5:
            _backward_5(values, grads, to_rows, from_rows, sums, width)
        elif orders == 7:
            _backward_7(values, grads, to_rows, from_rows, sums, width)
        elif orders == 3:
            _backward_3(values, grads, to_rows, from_rows, sums, width)
        else:
            _backward_1(values, grads, to_rows, from_rows, sums, width)


def _forward(pointer):  # type: ignore[no-untyped-def]
    table = table_of(pointer)
    t, i = _read(table), ARGUMENTS + 9
    to_latitude, to_longitude, counts = table[i], table[i + 2], table[i + 3]
    from_coefficient, from_longitude, out = table[i + 5], table[i + 6], table[i + 8]
    width, row = t.latitudes * t.channels, t.size * t.channels
    values = scratch_of_thread(table)
    sums = values + FLOAT * t.orders * width
    skipped = 1 if t.gates != 0 else 0
    start, stop = rows_of_thread(table)
    for e in range(start, stop):
        features, of_edge = t.features + FLOAT * e * t.stride, out + FLOAT * e * row
        if skipped:
            gates, scalars = floats(t.gates + FLOAT * e * t.gate_stride, (t.channels,)), floats(of_edge, (t.channels,))
            for c in range(t.channels):
                scalars[c] = silu(gates[c])
        _to_latitudes(features, to_latitude, counts, t.size, t.channels, t.latitudes, 0, values)
        _all_longitudes(t.longitudes, t.orders, values, to_longitude, from_longitude, sums, width)
        _from_latitudes(sums, from_coefficient, counts, t.size, t.channels, t.latitudes, skipped, of_edge)


def _backward(pointer):  # type: ignore[no-untyped-def]
    table = table_of(pointer)
    t, i = _read(table), ARGUMENTS + 9
    to_latitude, to_coefficient, to_longitude, counts = table[i], table[i + 1], table[i + 2], table[i + 3]
    from_latitude, from_longitude = table[i + 4], table[i + 6]
    grad, out, of_gates, stride, gate_stride = table[i + 8], table[i + 9], table[i + 10], table[i + 11], table[i + 12]
    width, row = t.latitudes * t.channels, t.size * t.channels
    values = scratch_of_thread(table)
    grads, sums = values + FLOAT * t.orders * width, values + 2 * FLOAT * t.orders * width
    skipped = 1 if t.gates != 0 else 0
    start, stop = rows_of_thread(table)
    for e in range(start, stop):
        features, of_edge, of_out = t.features + FLOAT * e * t.stride, grad + FLOAT * e * row, out + FLOAT * e * stride
        if skipped:
            gates, scalars = floats(t.gates + FLOAT * e * t.gate_stride, (t.channels,)), floats(of_edge, (t.channels,))
            results = floats(of_gates + FLOAT * e * gate_stride, (t.channels,))
            for c in range(t.channels):
                results[c] = scalars[c] * silu_derivative(gates[c])
        _to_latitudes(features, to_latitude, counts, t.size, t.channels, t.latitudes, 0, values)
        _to_latitudes(of_edge, from_latitude, counts, t.size, t.channels, t.latitudes, skipped, grads)
        _all_longitudes_backward(t.longitudes, t.orders, values, grads, to_longitude, from_longitude, sums, width)
        _from_latitudes(sums, to_coefficient, counts, t.size, t.channels, t.latitudes, 0, of_out)


_FORWARD, _BACKWARD = Loop(_forward), Loop(_backward)
