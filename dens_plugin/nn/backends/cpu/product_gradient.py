"""Gradients of what `rotate.rotate_to_edges` multiplies: those of the factors, and those of the atoms.

    dr_e,f,c = sum over s of row f:  dy_esc sum over j of  D_e,sj x_n,jc
    dx_n,jc  = sum over edges e of n:  sum over s of  D_e,sj r_e,f(s),c dy_esc

A thread takes an atom and all its edges, as in `aggregate`; the features of the atom are rotated once more.
"""

from __future__ import annotations

from typing import Any

import torch

from dens_plugin.nn.backends.cpu.aggregate import Degrees, Groups, add_rotated_back, copy
from dens_plugin.nn.backends.cpu.rotate import Factors
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
)


def product_gradient(
    grad: torch.Tensor,
    nodes: torch.Tensor,
    groups: Groups,
    packed: torch.Tensor,
    blocks: torch.Tensor,
    degrees: Degrees,
    factors: Factors,
    channels: slice,
    of_nodes: torch.Tensor,
) -> None:
    """For one end of all edges: write the gradient of the factors over their values, and add that of the atoms.

    Args:
        grad: (e, S, P C) of the product.
        nodes: (N, L, C).
        groups: of the edges by the atoms at this end.
        packed: (e, P) rotations, whose rows may be parts of longer ones.
        blocks: (S, 5) as for `rotate_to_edges`.
        degrees: of the S coefficients.
        factors: of the product; its values (e, R, P C) become their gradient.
        channels: those of this end among P C.
        of_nodes: (N, L, C) to add to.
    """
    (_, components, width), size = nodes.shape, len(blocks)
    sizes = size, components, width, grad.shape[2], packed.stride(0)
    tables = packed, blocks, *degrees, *groups
    places = grad[:, :, channels], *factors.of(channels), of_nodes
    scratch = (size + 1 + factors.values.shape[1]) * width + size
    _GRADIENT.run(len(groups.atoms), *sizes, nodes, *tables, *places, scratch=scratch)


def _products(*, is_first: bool) -> Any:
    """Of a coefficient: the gradient of its features, and what it gives to that of its factors."""

    @compiled
    @named("write_products" if is_first else "add_products")
    def write(grad, features, factors, bias, of_features, of_factors, size):  # type: ignore[no-untyped-def]
        g, x, f, b = floats(grad, (size,)), floats(features, (size,)), floats(factors, (size,)), floats(bias, (size,))
        y, out = floats(of_features, (size,)), floats(of_factors, (size,))
        for c in range(size):
            value = g[c]
            y[c] = value * (f[c] + b[c])
            if is_first:
                out[c] = value * x[c]
            else:
                out[c] += value * x[c]

    return write


_write_products, _add_products = _products(is_first=True), _products(is_first=False)


def _gradient(pointer):  # type: ignore[no-untyped-def]
    t, i = table_of(pointer), ARGUMENTS
    size, components, channels, width, stride, nodes = t[i], t[i + 1], t[i + 2], t[i + 3], t[i + 4], t[i + 5]
    packed, blocks, order, starts, counts = t[i + 6], integers(t[i + 7], (size, 5)), t[i + 8], t[i + 9], t[i + 10]
    atoms, offsets, edges = integers(t[i + 11], (t[0],)), integers(t[i + 12], (t[0] + 1,)), t[i + 13]
    grad, num_factors, factors, bias = t[i + 14], t[i + 15], t[i + 16], t[i + 17]
    of_nodes = t[i + 18]
    by_degree = integers(order, (size,))
    rows = scratch_of_thread(t)
    rotated = rows + FLOAT * size * channels
    of_factors = rotated + FLOAT * channels
    of_component = of_factors + FLOAT * num_factors * channels
    start, stop = rows_of_thread(t)
    for group in range(start, stop):
        of_atom = FLOAT * atoms[group] * components * channels
        chosen = integers(edges, (offsets[group + 1],))
        for number in range(offsets[group], offsets[group + 1]):
            e = chosen[number]
            rotation = packed + FLOAT * e * stride
            for n in range(size):
                s = by_degree[n]
                first, count, row, is_first = blocks[s, 1], blocks[s, 2], blocks[s, 3], blocks[s, 4]
                weights = rotation + FLOAT * blocks[s, 0]
                write_sum(count, weights, nodes + of_atom + FLOAT * first * channels, channels, rotated, channels)
                of_edge, of_row = grad + FLOAT * (e * size + s) * width, of_factors + FLOAT * row * channels
                place, of_bias = rows + FLOAT * n * channels, bias + FLOAT * row * width
                values = factors + FLOAT * (e * num_factors + row) * width
                if is_first:
                    _write_products(of_edge, rotated, values, of_bias, place, of_row, channels)
                else:
                    _add_products(of_edge, rotated, values, of_bias, place, of_row, channels)
            for row in range(num_factors):
                values = factors + FLOAT * (e * num_factors + row) * width
                copy(of_factors + FLOAT * row * channels, values, channels)
            sizes = size, components, starts, counts, channels
            add_rotated_back(rows, rotation, *sizes, of_component, of_nodes + of_atom)


_GRADIENT = Loop(_gradient)
