"""Messages of PaiNN along pairs of atoms, their gradients, and the gradients of these, in one pass over memory each.

Along an edge from atom a to atom b, with filters W, a direction r and, of atom a, factors h and vectors v:

    s_b += h1 W1,    t_b += h2 W2 v + h3 W3 r

A pair is an edge in both directions, of opposite r and equal W. A thread takes a structure, whose pairs stand together
and end at no other's atoms, so that no two threads write to one place. Sums over channels may be reordered.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from dens_plugin.nn.backends.cpu.team import (
    ARGUMENTS,
    FLOAT,
    Loop,
    floats,
    inlined,
    integers,
    njit,
    pointer_to_float,
    rows_of_thread,
    table_of,
    without_overlap,
)

_summing = functools.partial(njit, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
_ONE = np.float32(1)


class Pairs(NamedTuple):
    """Pairs of atoms by structure.

    Attributes:
        first: (H,) source of the edge along the directions.
        second: (H,) its target.
        offsets: (B + 1,) where the pairs of each structure begin, and H.
    """

    first: torch.Tensor
    second: torch.Tensor
    offsets: torch.Tensor


class Inputs(NamedTuple):
    """What messages are made of, contiguous; also gradients of these.

    Attributes:
        factors: (N, 3 C), h.
        vectors: (N, 3, C), v.
        filters: (H, 3 C), W.
        directions: (H, 3), r.
    """

    factors: torch.Tensor
    vectors: torch.Tensor
    filters: torch.Tensor
    directions: torch.Tensor

    def zeros(self) -> Inputs:
        """Of the same shapes."""
        return Inputs(*map(torch.zeros_like, self))


class Sums(NamedTuple):
    """What atoms hear, contiguous; also gradients of that.

    Attributes:
        scalars: (N, C), s.
        vectors: (N, 3, C), t.
    """

    scalars: torch.Tensor
    vectors: torch.Tensor


def messages(pairs: Pairs, inputs: Inputs) -> Sums:
    """The sums of all messages."""
    sums = Sums(torch.zeros_like(inputs.vectors[:, 0]), torch.zeros_like(inputs.vectors))
    _run(_MESSAGES, pairs, inputs, sums)
    return sums


def gradients(pairs: Pairs, inputs: Inputs, grad: Sums) -> Inputs:
    """Of the inputs, from those of the sums."""
    out = inputs.zeros()
    _run(_GRADIENTS, pairs, inputs, grad, out)
    return out


def second_gradients(pairs: Pairs, inputs: Inputs, grad: Sums, grad_of_gradients: Inputs) -> tuple[Sums, Inputs]:
    """Of what `gradients` reads, from those of what it gives."""
    of_grad, of_inputs = Sums(*map(torch.zeros_like, grad)), inputs.zeros()
    _run(_SECOND_GRADIENTS, pairs, inputs, grad, grad_of_gradients, of_grad, of_inputs)
    return of_grad, of_inputs


def _run(loop: Loop, pairs: Pairs, inputs: Inputs, *others: Sums | Inputs) -> None:
    tensors = [*pairs, *inputs, *(tensor for record in others for tensor in record)]
    loop.run(len(pairs.offsets) - 1, inputs.vectors.shape[2], *tensors)


@_summing
def _message(h1, h2, h3, v0, v1, v2, w1, w2, w3, x, y, z, s, t0, t1, t2, size):  # type: ignore[no-untyped-def]
    without_overlap()
    for c in range(size):
        s[c] += h1[c] * w1[c]
        of_vectors, of_direction = h2[c] * w2[c], h3[c] * w3[c]
        t0[c] += of_vectors * v0[c] + of_direction * x
        t1[c] += of_vectors * v1[c] + of_direction * y
        t2[c] += of_vectors * v2[c] + of_direction * z


@_summing
def _gradient(  # type: ignore[no-untyped-def]
    h1, h2, h3, v0, v1, v2, w1, w2, w3, x, y, z, s, t0, t1, t2,
    dh1, dh2, dh3, dv0, dv1, dv2, dw1, dw2, dw3, size,
):  # fmt: skip
    without_overlap()
    dx, dy, dz = np.float32(0), np.float32(0), np.float32(0)
    for c in range(size):
        along_v = t0[c] * v0[c] + t1[c] * v1[c] + t2[c] * v2[c]
        along_r = t0[c] * x + t1[c] * y + t2[c] * z
        of_vectors, of_direction = h2[c] * w2[c], h3[c] * w3[c]
        dh1[c] += w1[c] * s[c]
        dh2[c] += w2[c] * along_v
        dh3[c] += w3[c] * along_r
        dw1[c] += h1[c] * s[c]
        dw2[c] += h2[c] * along_v
        dw3[c] += h3[c] * along_r
        dv0[c] += of_vectors * t0[c]
        dv1[c] += of_vectors * t1[c]
        dv2[c] += of_vectors * t2[c]
        dx += of_direction * t0[c]
        dy += of_direction * t1[c]
        dz += of_direction * t2[c]
    return dx, dy, dz


@_summing
def _second_gradient(  # type: ignore[no-untyped-def]
    h1, h2, h3, v0, v1, v2, w1, w2, w3, x, y, z, s, t0, t1, t2,
    gh1, gh2, gh3, gv0, gv1, gv2, gw1, gw2, gw3, gx, gy, gz,
    ds, dt0, dt1, dt2, dh1, dh2, dh3, dv0, dv1, dv2, dw1, dw2, dw3, size,
):  # fmt: skip
    without_overlap()
    dx, dy, dz = np.float32(0), np.float32(0), np.float32(0)
    for c in range(size):
        along_v = t0[c] * v0[c] + t1[c] * v1[c] + t2[c] * v2[c]
        along_gv = t0[c] * gv0[c] + t1[c] * gv1[c] + t2[c] * gv2[c]
        along_r = t0[c] * x + t1[c] * y + t2[c] * z
        along_gr = t0[c] * gx + t1[c] * gy + t2[c] * gz
        of_vectors, of_direction = h2[c] * w2[c], h3[c] * w3[c]
        first = gh1[c] * w1[c] + gw1[c] * h1[c]
        second = gh2[c] * w2[c] + gw2[c] * h2[c]
        third = gh3[c] * w3[c] + gw3[c] * h3[c]
        ds[c] += first
        dt0[c] += second * v0[c] + of_vectors * gv0[c] + third * x + of_direction * gx
        dt1[c] += second * v1[c] + of_vectors * gv1[c] + third * y + of_direction * gy
        dt2[c] += second * v2[c] + of_vectors * gv2[c] + third * z + of_direction * gz
        dh1[c] += gw1[c] * s[c]
        dh2[c] += gw2[c] * along_v + w2[c] * along_gv
        dh3[c] += gw3[c] * along_r + w3[c] * along_gr
        dw1[c] += gh1[c] * s[c]
        dw2[c] += gh2[c] * along_v + h2[c] * along_gv
        dw3[c] += gh3[c] * along_r + h3[c] * along_gr
        dv0[c] += second * t0[c]
        dv1[c] += second * t1[c]
        dv2[c] += second * t2[c]
        dx += third * t0[c]
        dy += third * t1[c]
        dz += third * t2[c]
    return dx, dy, dz


@inlined
def _row(address, number, size):  # type: ignore[no-untyped-def]
    return pointer_to_float(address + FLOAT * number * size)


@inlined
def _three(address, number, size):  # type: ignore[no-untyped-def]
    row = address + FLOAT * 3 * number * size
    return pointer_to_float(row), pointer_to_float(row + FLOAT * size), pointer_to_float(row + FLOAT * 2 * size)


@inlined
def _ends(firsts, seconds, pair, way):  # type: ignore[no-untyped-def]
    """Source, target and sign of the direction."""
    if way == 0:
        return firsts[pair], seconds[pair], _ONE
    return seconds[pair], firsts[pair], -_ONE


@inlined
def _add(out, pair, sign, slopes):  # type: ignore[no-untyped-def]
    for axis in range(3):
        out[3 * pair + axis] += sign * slopes[axis]


@inlined
def _pairs(table):  # type: ignore[no-untyped-def]
    """This thread's pairs and where their ends stand."""
    start, stop = rows_of_thread(table)
    offsets = integers(table[_PAIRS + 2], (table[0] + 1,))
    return offsets[start], offsets[stop], offsets[table[0]]


def _all_messages(pointer: Any) -> None:
    table = table_of(pointer)
    size, (begin, end, count) = table[ARGUMENTS], _pairs(table)
    firsts, seconds = integers(table[_PAIRS], (count,)), integers(table[_PAIRS + 1], (count,))
    h, v, w, r = table[_INPUTS], table[_INPUTS + 1], table[_INPUTS + 2], floats(table[_INPUTS + 3], (3 * count,))
    s, t = table[_SUMS], table[_SUMS + 1]
    for pair in range(begin, end):
        for way in range(2):
            a, b, sign = _ends(firsts, seconds, pair, way)
            h1, h2, h3 = _three(h, a, size)
            v0, v1, v2 = _three(v, a, size)
            w1, w2, w3 = _three(w, pair, size)
            x, y, z = sign * r[3 * pair], sign * r[3 * pair + 1], sign * r[3 * pair + 2]
            t0, t1, t2 = _three(t, b, size)
            _message(h1, h2, h3, v0, v1, v2, w1, w2, w3, x, y, z, _row(s, b, size), t0, t1, t2, size)


def _all_gradients(pointer: Any) -> None:
    table = table_of(pointer)
    size, (begin, end, count) = table[ARGUMENTS], _pairs(table)
    firsts, seconds = integers(table[_PAIRS], (count,)), integers(table[_PAIRS + 1], (count,))
    h, v, w, r = table[_INPUTS], table[_INPUTS + 1], table[_INPUTS + 2], floats(table[_INPUTS + 3], (3 * count,))
    s, t = table[_SUMS], table[_SUMS + 1]
    out = _SUMS + 2
    dh, dv, dw, dr = table[out], table[out + 1], table[out + 2], floats(table[out + 3], (3 * count,))
    for pair in range(begin, end):
        for way in range(2):
            a, b, sign = _ends(firsts, seconds, pair, way)
            h1, h2, h3 = _three(h, a, size)
            v0, v1, v2 = _three(v, a, size)
            w1, w2, w3 = _three(w, pair, size)
            x, y, z = sign * r[3 * pair], sign * r[3 * pair + 1], sign * r[3 * pair + 2]
            t0, t1, t2 = _three(t, b, size)
            dh1, dh2, dh3 = _three(dh, a, size)
            dv0, dv1, dv2 = _three(dv, a, size)
            dw1, dw2, dw3 = _three(dw, pair, size)
            slopes = _gradient(
                h1, h2, h3, v0, v1, v2, w1, w2, w3, x, y, z, _row(s, b, size), t0, t1, t2,
                dh1, dh2, dh3, dv0, dv1, dv2, dw1, dw2, dw3, size,
            )  # fmt: skip
            _add(dr, pair, sign, slopes)


def _all_second_gradients(pointer: Any) -> None:
    table = table_of(pointer)
    size, (begin, end, count) = table[ARGUMENTS], _pairs(table)
    firsts, seconds = integers(table[_PAIRS], (count,)), integers(table[_PAIRS + 1], (count,))
    h, v, w, r = table[_INPUTS], table[_INPUTS + 1], table[_INPUTS + 2], floats(table[_INPUTS + 3], (3 * count,))
    s, t = table[_SUMS], table[_SUMS + 1]
    of = _SUMS + 2
    gh, gv, gw, gr = table[of], table[of + 1], table[of + 2], floats(table[of + 3], (3 * count,))
    ds, dt = table[of + 4], table[of + 5]
    out = of + 6
    dh, dv, dw, dr = table[out], table[out + 1], table[out + 2], floats(table[out + 3], (3 * count,))
    for pair in range(begin, end):
        for way in range(2):
            a, b, sign = _ends(firsts, seconds, pair, way)
            h1, h2, h3 = _three(h, a, size)
            v0, v1, v2 = _three(v, a, size)
            w1, w2, w3 = _three(w, pair, size)
            x, y, z = sign * r[3 * pair], sign * r[3 * pair + 1], sign * r[3 * pair + 2]
            t0, t1, t2 = _three(t, b, size)
            gh1, gh2, gh3 = _three(gh, a, size)
            gv0, gv1, gv2 = _three(gv, a, size)
            gw1, gw2, gw3 = _three(gw, pair, size)
            gx, gy, gz = sign * gr[3 * pair], sign * gr[3 * pair + 1], sign * gr[3 * pair + 2]
            dt0, dt1, dt2 = _three(dt, b, size)
            dh1, dh2, dh3 = _three(dh, a, size)
            dv0, dv1, dv2 = _three(dv, a, size)
            dw1, dw2, dw3 = _three(dw, pair, size)
            slopes = _second_gradient(
                h1, h2, h3, v0, v1, v2, w1, w2, w3, x, y, z, _row(s, b, size), t0, t1, t2,
                gh1, gh2, gh3, gv0, gv1, gv2, gw1, gw2, gw3, gx, gy, gz,
                _row(ds, b, size), dt0, dt1, dt2, dh1, dh2, dh3, dv0, dv1, dv2, dw1, dw2, dw3, size,
            )  # fmt: skip
            _add(dr, pair, sign, slopes)


_PAIRS = ARGUMENTS + 1  # where records begin in a table
_INPUTS = _PAIRS + 3
_SUMS = _INPUTS + 4

_MESSAGES, _GRADIENTS, _SECOND_GRADIENTS = Loop(_all_messages), Loop(_all_gradients), Loop(_all_second_gradients)
