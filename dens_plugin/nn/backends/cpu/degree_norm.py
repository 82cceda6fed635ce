"""Features of atoms over their root mean square, and the gradients: the arithmetic of
`dens_plugin.nn.equiformer_v2.degree_norm`.

A thread takes an atom, whose features stay in its first cache from the squares to the result. Gradients of the weights
are summed for a fixed number of blocks of atoms, so that they do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
import torch

from dens_plugin.nn.backends.cpu.team import (
    ARGUMENTS,
    FLOAT,
    Loop,
    compiled,
    floats,
    rows_of_thread,
    scratch_of_thread,
    table_of,
)

_BLOCKS = 64
_ONE = np.float32(1)


def normed(
    features: torch.Tensor, balance: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, is_separate: bool
) -> torch.Tensor:
    """(N, L, C) of contiguous features (N, L, C); `degree_norm` says what the others are."""
    out = torch.empty_like(features)
    _FORWARD.run(
        len(features), *_sizes(features, is_separate), features, balance, weight, bias, out, scratch=_scratch(out)
    )
    return out


def normed_backward(
    grad: torch.Tensor, features: torch.Tensor, balance: torch.Tensor, weight: torch.Tensor, *, is_separate: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the features (N, L, C), of the weight (lmax + 1, C) and of the bias (C,)."""
    blocks = min(len(features), _BLOCKS)
    out, of_weight = torch.empty_like(features), weight.new_empty(blocks, *weight.shape)
    of_bias = weight.new_empty(blocks, weight.shape[1])
    sizes = len(features), *_sizes(features, is_separate)
    tables = grad.contiguous(), features, balance, weight, out, of_weight, of_bias
    _BACKWARD.run(blocks, *sizes, *tables, scratch=_scratch(features))
    return out, of_weight.sum(0), of_bias.sum(0)


def _sizes(features: torch.Tensor, is_separate: bool) -> tuple[int, ...]:
    return features.shape[1], features.shape[2], int(is_separate)


def _scratch(features: torch.Tensor) -> int:
    return 2 * features.shape[2]


@compiled
def _sum(values, size):  # type: ignore[no-untyped-def]
    x = floats(values, (size,))
    total = x[0]
    for c in range(1, size):
        total += x[c]
    return total


@compiled
def _center(features, out, size):  # type: ignore[no-untyped-def]
    """Write ``size`` numbers without their mean, and without what rounding left of it."""
    x, y = floats(features, (size,)), floats(out, (size,))
    mean = _sum(features, size) / np.float32(size)
    for c in range(size):
        y[c] = x[c] - mean
    rest = _sum(out, size) / np.float32(size)
    for c in range(size):
        y[c] -= rest


@compiled
def _product(left, right, size):  # type: ignore[no-untyped-def]
    x, y = floats(left, (size,)), floats(right, (size,))
    total = x[0] * y[0]
    for c in range(1, size):
        total += x[c] * y[c]
    return total


@compiled
def _add_squares(features, weight, out, size):  # type: ignore[no-untyped-def]
    x, y = floats(features, (size,)), floats(out, (size,))
    for c in range(size):
        y[c] += weight * x[c] * x[c]


@compiled
def _scales(features, centered, balance, components, channels, is_separate, squares):  # type: ignore[no-untyped-def]
    """Reciprocal root mean squares of degree 0 and of the others; ``squares`` is overwritten."""
    weights = floats(balance, (components + 1,))
    floats(squares, (channels,))[:] = 0
    for i in range(1, components):
        _add_squares(features + FLOAT * i * channels, weights[i], squares, channels)
    first, others = weights[0] * _product(centered, centered, channels), _sum(squares, channels)
    eps = weights[components]
    if is_separate:
        return _ONE / np.sqrt(first + eps), _ONE / np.sqrt(others + eps)
    both = _ONE / np.sqrt(first + others + eps)
    return both, both


@compiled
def _write_scaled(features, scale, weight, out, size):  # type: ignore[no-untyped-def]
    x, a, y = floats(features, (size,)), floats(weight, (size,)), floats(out, (size,))
    for c in range(size):
        y[c] = x[c] * scale * a[c]


@compiled
def _add_bias(bias, out, size):  # type: ignore[no-untyped-def]
    b, y = floats(bias, (size,)), floats(out, (size,))
    for c in range(size):
        y[c] += b[c]


@compiled
def _degree_behind(degree, component):  # type: ignore[no-untyped-def]
    """That of a component, from that of the one before."""
    return degree + 1 if component == (degree + 1) * (degree + 1) else degree


def _forward(pointer):  # type: ignore[no-untyped-def]
    t, i = table_of(pointer), ARGUMENTS
    components, channels, is_separate = t[i], t[i + 1], t[i + 2]
    features, balance, weight, bias, out = t[i + 3], t[i + 4], t[i + 5], t[i + 6], t[i + 7]
    centered = scratch_of_thread(t)
    squares = centered + FLOAT * channels
    start, stop = rows_of_thread(t)
    for n in range(start, stop):
        place = FLOAT * n * components * channels
        x, y = features + place, out + place
        _center(x, centered, channels)
        first, others = _scales(x, centered, balance, components, channels, is_separate, squares)
        _write_scaled(centered, first, weight, y, channels)
        _add_bias(bias, y, channels)
        degree = 0
        for j in range(1, components):
            degree = _degree_behind(degree, j)
            row = FLOAT * j * channels
            _write_scaled(x + row, others, weight + FLOAT * degree * channels, y + row, channels)


@compiled
def _add_products(grad, features, scale, weight, of_weight, inner, size):  # type: ignore[no-untyped-def]
    """To the gradient of the weight, and to the inner products of features and their gradients, for every channel."""
    g, x, a = floats(grad, (size,)), floats(features, (size,)), floats(weight, (size,))
    w, y = floats(of_weight, (size,)), floats(inner, (size,))
    for c in range(size):
        product = g[c] * x[c]
        w[c] += scale * product
        y[c] += a[c] * product


@compiled
def _write_gradient(grad, features, scale, weight, factor, out, size):  # type: ignore[no-untyped-def]
    g, x, a, y = floats(grad, (size,)), floats(features, (size,)), floats(weight, (size,)), floats(out, (size,))
    for c in range(size):
        y[c] = scale * g[c] * a[c] - factor * x[c]


def _backward(pointer):  # type: ignore[no-untyped-def]
    t, i = table_of(pointer), ARGUMENTS
    atoms, components, channels, is_separate = t[i], t[i + 1], t[i + 2], t[i + 3]
    grad, features, balance, weight, out = t[i + 4], t[i + 5], t[i + 6], t[i + 7], t[i + 8]
    of_weights, of_biases = t[i + 9], t[i + 10]
    weights = floats(balance, (components + 1,))
    degrees = 0
    while degrees * degrees < components:
        degrees += 1
    centered = scratch_of_thread(t)
    room = centered + FLOAT * channels
    start, stop = rows_of_thread(t)
    for block in range(start, stop):
        of_weight, of_bias = of_weights + FLOAT * block * degrees * channels, of_biases + FLOAT * block * channels
        floats(of_weight, (degrees * channels,))[:] = 0
        floats(of_bias, (channels,))[:] = 0
        for n in range(atoms * block // t[0], atoms * (block + 1) // t[0]):
            place = FLOAT * n * components * channels
            g, x, y = grad + place, features + place, out + place
            _center(x, centered, channels)
            scale, scale_of_others = _scales(x, centered, balance, components, channels, is_separate, room)
            _add_bias(g, of_bias, channels)
            floats(room, (channels,))[:] = 0
            _add_products(g, centered, scale, weight, of_weight, room, channels)
            inner = _sum(room, channels)
            floats(room, (channels,))[:] = 0
            degree = 0
            for j in range(1, components):
                degree = _degree_behind(degree, j)
                row, of_degree = FLOAT * j * channels, FLOAT * degree * channels
                _add_products(
                    g + row, x + row, scale_of_others, weight + of_degree, of_weight + of_degree, room, channels
                )
            inner_of_others = _sum(room, channels)
            if not is_separate:
                inner = inner_of_others = inner + inner_of_others
            factor = scale * scale * scale * inner * weights[0]
            _write_gradient(g, centered, scale, weight, factor, room, channels)
            _center(room, y, channels)
            factor = scale_of_others * scale_of_others * scale_of_others * inner_of_others
            degree = 0
            for j in range(1, components):
                degree = _degree_behind(degree, j)
                row, of_degree = FLOAT * j * channels, weight + FLOAT * degree * channels
                _write_gradient(g + row, x + row, scale_of_others, of_degree, factor * weights[j], y + row, channels)


_FORWARD, _BACKWARD = Loop(_forward), Loop(_backward)
