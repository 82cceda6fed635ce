"""From the frames of atoms to those of their edges, times radial factors.

    y_esc = r_e,f(s),c  sum over j of  D_e,sj x_n,jc

D is block-diagonal: a coefficient of degree l needs the 2 l + 1 components of that degree alone, 235 numbers of 1,421
at lmax 6 and mmax 2. The features of an edge's ends stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dens_plugin.nn.loops.sums import write_sum
from dens_plugin.nn.loops.team import (
    ARGUMENTS,
    FLOAT,
    Loop,
    compiled,
    floats,
    integers,
    rows_of_thread,
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


_ROTATE = Loop(_rotate)
