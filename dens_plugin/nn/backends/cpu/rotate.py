"""From the frames of atoms to those of their edges, times radial factors.

    y_esc = r_e,f(s),c  sum over j of  D_e,sj x_n,jc

D is block-diagonal: a coefficient of degree l needs the 2 l + 1 components of that degree alone, 235 numbers of 1,421
at lmax 6 and mmax 2. The features of an edge's ends stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dens_plugin.nn.backends.cpu.sums import write_sum
from dens_plugin.nn.backends.cpu.team import (
    ARGUMENTS,
    FLOAT,
    Loop,
    compiled,
    floats,
    integers,
    rows_of_thread,
    scratch_of_thread,
    table_of,
)


class End(NamedTuple):
    """Features of an end of every edge.

    Attributes:
        nodes: (N, L, C).
        chosen: (e,) which of them.
    """

    nodes: torch.Tensor
    chosen: torch.Tensor


class Factors(NamedTuple):
    """What the features of the edges are multiplied by: ``values + bias``.

    Attributes:
        values: (e, R, P C).
        bias: (R P C,).
    """

    values: torch.Tensor
    bias: torch.Tensor

    def of(self, channels: slice) -> tuple[int, torch.Tensor, torch.Tensor]:
        """What a loop reads for some channels: R, and where values and bias begin."""
        return self.values.shape[1], self.values[:, :, channels], self.bias[channels]


def rotate_to_edges(
    ends: Sequence[End], packed: torch.Tensor, blocks: torch.Tensor, factors: Factors | None = None
) -> torch.Tensor:
    """Features in the edges' frames, those of P ends side by side: (e, S, P C).

    Args:
        ends: one or two, of as many components and channels.
        packed: (e, P) rotations, whose rows may be parts of longer ones.
        blocks: (S, 5) of the coefficients: first number in a packed rotation, first component, number of both, row of
            the factors, and whether it is the first of the coefficients, sorted by degree, that have this row.
        factors: of the products, if there are any.
    """
    (_, components, channels), (first, *others) = ends[0].nodes.shape, ends
    out = packed.new_empty(len(packed), len(blocks), len(ends) * channels)
    sizes = len(blocks), components, channels, len(ends), packed.stride(0)
    of_factors = (0, 0, 0) if factors is None else factors.of(slice(None))
    second = others[0] if others else (0, 0)
    _ROTATE.run(len(packed), *sizes, *first, *second, packed, blocks, *of_factors, out)
    return out


def rotate_order_to_edges(
    ends: Sequence[End], packed: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Write the features of m and -m in the edges' frames, times factors whose place they take, and their sums.

    Args:
        ends: one or two, of as many components and channels.
        packed: (e, P) rotations, whose rows may be parts of longer ones.
        blocks: as for `rotate_to_edges`, of the order's coefficients: n of m, and n of -m unless m is 0.
        bias: (n P C,) of the factors, whose values are the last n rows of ``out``; None for no factors.
        out: (e, n, P C) for m = 0; else (e, 3 n, P C): those of m, those of -m, and the sums of both.
    """
    (_, components, channels), (first, *others) = ends[0].nodes.shape, ends
    signs = 1 if out.shape[1] == len(blocks) else 2
    sizes = len(blocks) // signs, signs, components, channels, len(ends), packed.stride(0)
    second = others[0] if others else (0, 0)
    tables = packed, blocks, 0 if bias is None else bias, out
    _ROTATE_ORDER.run(len(packed), *sizes, *first, *second, *tables, scratch=len(ends) * channels)


@compiled
def _multiply(features, factors, bias, size):  # type: ignore[no-untyped-def]
    x, f, b = floats(features, (size,)), floats(factors, (size,)), floats(bias, (size,))
    for c in range(size):
        x[c] *= f[c] + b[c]


def _rotate(pointer):  # type: ignore[no-untyped-def]
    t, i = table_of(pointer), ARGUMENTS
    size, components, channels, ends, stride = t[i], t[i + 1], t[i + 2], t[i + 3], t[i + 4]
    packed, blocks = t[i + 9], integers(t[i + 10], (size, 5))
    num_factors, factors, bias, out = t[i + 11], t[i + 12], t[i + 13], t[i + 14]
    width = ends * channels
    start, stop = rows_of_thread(t)
    for e in range(start, stop):
        for s in range(size):
            first, count, row = blocks[s, 1], blocks[s, 2], blocks[s, 3]
            weights = packed + FLOAT * (e * stride + blocks[s, 0])
            place = out + FLOAT * (e * size + s) * width
            for end in range(ends):
                nodes, chosen = t[i + 5 + 2 * end], integers(t[i + 6 + 2 * end], (t[0],))
                rows = nodes + FLOAT * (chosen[e] * components + first) * channels
                write_sum(count, weights, rows, channels, place + FLOAT * end * channels, channels)
            if factors != 0:
                of_edge = factors + FLOAT * (e * num_factors + row) * width
                _multiply(place, of_edge, bias + FLOAT * row * width, width)


@compiled
def _multiply_there(features, factors, bias, size):  # type: ignore[no-untyped-def]
    """Write the products in the place of the factors."""
    x, f, b = floats(features, (size,)), floats(factors, (size,)), floats(bias, (size,))
    for c in range(size):
        f[c] = x[c] * (f[c] + b[c])


@compiled
def _multiply_both(plus, minus, factors, bias, size):  # type: ignore[no-untyped-def]
    """The products of both signs, and their sums in the place of the factors."""
    x, y, f, b = floats(plus, (size,)), floats(minus, (size,)), floats(factors, (size,)), floats(bias, (size,))
    for c in range(size):
        factor = f[c] + b[c]
        first, second = x[c] * factor, y[c] * factor
        x[c], y[c], f[c] = first, second, first + second


@compiled
def _add_both(plus, minus, sums, size):  # type: ignore[no-untyped-def]
    x, y, total = floats(plus, (size,)), floats(minus, (size,)), floats(sums, (size,))
    for c in range(size):
        total[c] = x[c] + y[c]


def _rotate_order(pointer):  # type: ignore[no-untyped-def]
    t, i = table_of(pointer), ARGUMENTS
    size, signs, components, channels, ends, stride = t[i], t[i + 1], t[i + 2], t[i + 3], t[i + 4], t[i + 5]
    packed, blocks, bias, out = t[i + 10], integers(t[i + 11], (signs * size, 5)), t[i + 12], t[i + 13]
    width, scratch = ends * channels, scratch_of_thread(t)
    rows = size if signs == 1 else 3 * size
    start, stop = rows_of_thread(t)
    for e in range(start, stop):
        of_edge = out + FLOAT * e * rows * width
        for d in range(size):
            plus, minus = of_edge + FLOAT * d * width, of_edge + FLOAT * (size + d) * width
            of_factors, of_bias = of_edge + FLOAT * (rows - size + d) * width, bias + FLOAT * d * width
            for sign in range(signs):
                s = sign * size + d
                first, count = blocks[s, 1], blocks[s, 2]
                place = minus if sign == 1 else (scratch if signs == 1 and bias != 0 else plus)
                for end in range(ends):
                    nodes, chosen = t[i + 6 + 2 * end], integers(t[i + 7 + 2 * end], (t[0],))
                    weights, features = packed + FLOAT * (e * stride + blocks[s, 0]), chosen[e] * components + first
                    of_end = place + FLOAT * end * channels
                    write_sum(count, weights, nodes + FLOAT * features * channels, channels, of_end, channels)
            if signs == 1:
                if bias != 0:
                    _multiply_there(scratch, of_factors, of_bias, width)
            elif bias != 0:
                _multiply_both(plus, minus, of_factors, of_bias, width)
            else:
                _add_both(plus, minus, of_factors, width)


_ROTATE, _ROTATE_ORDER = Loop(_rotate), Loop(_rotate_order)
