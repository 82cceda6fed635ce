"""From the frames of edges back to atoms: weigh, rotate, sum; and the gradients.

    x_n = sum over edges e of n:  D_e^T ( a_e * c * v_e )

with attention weights a of some heads and a scale c of each coefficient, or without either. A thread takes an atom and
all its edges, whose sum stays in its caches, so that no two threads write to one place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dens_plugin.nn.backends.cpu.sums import add_sum, write_sum
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


class Groups(NamedTuple):
    """Edges by atom.

    Attributes:
        atoms: (g,) different ones.
        offsets: (g + 1,) where the edges of each begin in ``edges``, and e.
        edges: (e,) which edges.
    """

    atoms: torch.Tensor
    offsets: torch.Tensor
    edges: torch.Tensor


class Degrees(NamedTuple):
    """The coefficients of an edge by degree.

    Attributes:
        order: (S,) int64, the coefficients sorted by degree.
        starts: (S,) int64, in this order, their first numbers in a packed rotation.
        counts: (lmax + 1,) int64, how many a degree has.
    """

    order: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor


class Weights(NamedTuple):
    """What the features of the edges are multiplied by.

    Attributes:
        attention: (e, H) of the heads, whose channels stand together.
        scale: (S,) of the coefficients.
    """

    attention: torch.Tensor
    scale: torch.Tensor


def add_to_atoms(
    features: torch.Tensor,
    packed: torch.Tensor,
    degrees: Degrees,
    groups: Groups,
    out: torch.Tensor,
    weights: Weights | None = None,
) -> None:
    """Add to ``out`` (N, L, C) the sums of features (e, S, C), whose rows may be parts of longer ones.

    Args:
        features: of the edges.
        packed: (e, P) rotations, whose rows may be parts of longer ones.
        degrees: of the S coefficients.
        groups: of the edges.
        out: of the atoms; contiguous.
        weights: if there are any.
    """
    features = features if features.stride(2) == 1 else features.contiguous()
    size, channels = features.shape[1:]
    heads, of_weights = (0, (0, 0)) if weights is None else (weights.attention.shape[1], weights)
    sizes = size, out.shape[1], channels, features.stride(0), features.stride(1), packed.stride(0), heads
    arguments = features, packed, *degrees, *of_weights, *groups, out
    _ADD.run(len(groups.atoms), *sizes, *arguments, scratch=(size + 1) * channels + size)


def weighted_backward(
    grad: torch.Tensor,
    row: torch.Tensor,
    values: torch.Tensor,
    packed: torch.Tensor,
    blocks: torch.Tensor,
    weights: Weights,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the values (e, S, C) and of the attention (e, H) from those of the atoms (N, L, C).

    Args:
        grad: of the atoms; contiguous.
        row: (e,) the atom of every edge.
        values: (e, S, C).
        packed: (e, P) rotations, whose rows may be parts of longer ones.
        blocks: (S, 5) as for `rotate_to_edges`.
        weights: those of the sum.
    """
    size, channels = values.shape[1:]
    of_values, of_attention = torch.empty_like(values), torch.empty_like(weights.attention)
    sizes = size, grad.shape[1], channels, packed.stride(0), weights.attention.shape[1]
    _BACKWARD.run(
        len(values),
        *sizes,
        grad,
        row,
        values,
        packed,
        blocks,
        *weights,
        of_values,
        of_attention,
        scratch=3 * channels,
    )
    return of_values, of_attention


@compiled
def _expand(attention, heads, out, channels):  # type: ignore[no-untyped-def]
    """Write the weight of every channel's head."""
    weights, of_channels = floats(attention, (heads,)), floats(out, (heads, channels // heads))
    for h in range(heads):
        for c in range(channels // heads):
            of_channels[h, c] = weights[h]


@compiled
def _scale(features, factors, scale, out, size):  # type: ignore[no-untyped-def]
    x, f, y = floats(features, (size,)), floats(factors, (size,)), floats(out, (size,))
    for c in range(size):
        y[c] = x[c] * f[c] * scale


@compiled
def copy(features, out, size):  # type: ignore[no-untyped-def]
    """Write ``size`` numbers to another place."""
    x, y = floats(features, (size,)), floats(out, (size,))
    for c in range(size):
        y[c] = x[c]


@compiled
def _products(grad, values, factors, scale, of_values, of_factors, size):  # type: ignore[no-untyped-def]
    """Gradients of a coefficient's values, and what they add to those of the factors of all channels."""
    g, v, f = floats(grad, (size,)), floats(values, (size,)), floats(factors, (size,))
    x, y = floats(of_values, (size,)), floats(of_factors, (size,))
    for c in range(size):
        scaled = g[c] * scale
        x[c] = scaled * f[c]
        y[c] += scaled * v[c]


class _Table(NamedTuple):
    """Sizes and addresses that `_add` reads."""

    size: int
    components: int
    channels: int
    edge_stride: int
    stride: int
    packed_stride: int
    heads: int
    features: int
    packed: int
    order: int
    starts: int
    counts: int
    attention: int
    scale: int


@compiled
def _read(t):  # type: ignore[no-untyped-def]
    i = ARGUMENTS
    sizes = (t[i], t[i + 1], t[i + 2], t[i + 3], t[i + 4], t[i + 5], t[i + 6])
    return _Table(*sizes, t[i + 7], t[i + 8], t[i + 9], t[i + 10], t[i + 11], t[i + 12], t[i + 13])


@compiled
def _write_by_degree(t, e, rows, factors):  # type: ignore[no-untyped-def]
    """Write an edge's weighed features (S, C) sorted by degree."""
    order, scale = integers(t.order, (t.size,)), floats(t.scale, (t.size,))
    if t.heads > 0:
        _expand(t.attention + FLOAT * e * t.heads, t.heads, factors, t.channels)
    for n in range(t.size):
        x = t.features + FLOAT * (e * t.edge_stride + order[n] * t.stride)
        y = rows + FLOAT * n * t.channels
        if t.heads > 0:
            _scale(x, factors, scale[order[n]], y, t.channels)
        else:
            copy(x, y, t.channels)


@compiled
def add_rotated_back(rows, packed, size, components, starts, counts, channels, of_component, out):  # type: ignore[no-untyped-def]
    """Add an edge's features (S, C), sorted by degree, to an atom's (L, C); ``of_component`` has room for S numbers."""
    first_numbers, numbers = integers(starts, (size,)), integers(counts, (components,))
    rotation, weights = floats(packed, (size * components,)), floats(of_component, (size,))
    first, degree = 0, 0
    while degree * degree < components:
        count = numbers[degree]
        for j in range(2 * degree + 1):
            for n in range(count):
                weights[n] = rotation[first_numbers[first + n] + j]
            place, of_degree = out + FLOAT * (degree * degree + j) * channels, rows + FLOAT * first * channels
            add_sum(count, of_component, of_degree, channels, place, channels)
        first += count
        degree += 1


def _add(pointer):  # type: ignore[no-untyped-def]
    table, i = table_of(pointer), ARGUMENTS + 14
    t, count = _read(table), table[0]
    atoms, offsets = integers(table[i], (count,)), integers(table[i + 1], (count + 1,))
    edges, out = table[i + 2], table[i + 3]
    rows = scratch_of_thread(table)
    factors = rows + FLOAT * t.size * t.channels
    of_component = factors + FLOAT * t.channels
    start, stop = rows_of_thread(table)
    for group in range(start, stop):
        of_atom = out + FLOAT * atoms[group] * t.components * t.channels
        chosen = integers(edges, (offsets[group + 1],))
        for place in range(offsets[group], offsets[group + 1]):
            _write_by_degree(t, chosen[place], rows, factors)
            packed = t.packed + FLOAT * chosen[place] * t.packed_stride
            sizes = t.size, t.components, t.starts, t.counts, t.channels
            add_rotated_back(rows, packed, *sizes, of_component, of_atom)


def _backward(pointer):  # type: ignore[no-untyped-def]
    t, i = table_of(pointer), ARGUMENTS
    size, components, channels, stride, heads = t[i], t[i + 1], t[i + 2], t[i + 3], t[i + 4]
    grad, row = t[i + 5], integers(t[i + 6], (t[0],))
    values, packed, blocks, attention = t[i + 7], t[i + 8], integers(t[i + 9], (size, 5)), t[i + 10]
    scale, of_values, of_attention = floats(t[i + 11], (size,)), t[i + 12], floats(t[i + 13], (t[0], heads))
    rotated = scratch_of_thread(t)
    factors, of_factors = rotated + FLOAT * channels, rotated + 2 * FLOAT * channels
    of_channels = floats(of_factors, (heads, channels // heads))
    start, stop = rows_of_thread(t)
    for e in range(start, stop):
        _expand(attention + FLOAT * e * heads, heads, factors, channels)
        of_channels[:] = 0
        of_atom = grad + FLOAT * row[e] * components * channels
        for s in range(size):
            first, place = blocks[s, 1], FLOAT * (e * size + s) * channels
            weights = packed + FLOAT * (e * stride + blocks[s, 0])
            write_sum(blocks[s, 2], weights, of_atom + FLOAT * first * channels, channels, rotated, channels)
            _products(rotated, values + place, factors, scale[s], of_values + place, of_factors, channels)
        for h in range(heads):
            total = of_channels[h, 0]
            for c in range(1, channels // heads):
                total += of_channels[h, c]
            of_attention[e, h] = total


_ADD, _BACKWARD = Loop(_add), Loop(_backward)
