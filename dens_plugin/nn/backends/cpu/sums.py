"""Weighted sums of a few rows: the arithmetic of all loops here, eight rows at a time in registers.

out_c = sum over n of  w_n x_nc
"""

from __future__ import annotations

from typing import Any

from dens_plugin.nn.backends.cpu.team import FLOAT, compiled, floats, named, wide_vectors

_AT_ONCE = 8


def _sum_of(count: int, *, is_first: bool) -> Any:
    """For a number of rows that is a constant, so that LLVM unrolls it: write the sum, or add it to what is there."""

    @compiled
    @named(f"write_{count}")
    def write(weights, rows, stride, out, size):  # type: ignore[no-untyped-def]
        wide_vectors()
        w, x, y = floats(weights, (count,)), floats(rows, (count, stride)), floats(out, (size,))
        for c in range(size):
            value = w[0] * x[0, c]
            for n in range(1, count):
                value += w[n] * x[n, c]
            y[c] = value

    @compiled
    @named(f"add_{count}")
    def add(weights, rows, stride, out, size):  # type: ignore[no-untyped-def]
        wide_vectors()
        w, x, y = floats(weights, (count,)), floats(rows, (count, stride)), floats(out, (size,))
        for c in range(size):
            value = y[c]
            for n in range(count):
                value += w[n] * x[n, c]
            y[c] = value

    return write if is_first else add


_write_1, _write_2, _write_3, _write_4, _write_5, _write_6, _write_7, _write_8 = (
    _sum_of(count, is_first=True) for count in range(1, _AT_ONCE + 1)
)
_add_1, _add_2, _add_3, _add_4, _add_5, _add_6, _add_7, _add_8 = (
    _sum_of(count, is_first=False) for count in range(1, _AT_ONCE + 1)
)


@compiled
def _write_few(count, weights, rows, stride, out, size):  # type: ignore[no-untyped-def]
    if count == 5:
        _write_5(weights, rows, stride, out, size)
    elif count == 7:
        _write_7(weights, rows, stride, out, size)
    elif count == 3:
        _write_3(weights, rows, stride, out, size)
    elif count == 8:
        _write_8(weights, rows, stride, out, size)
    elif count == 1:
        _write_1(weights, rows, stride, out, size)
    elif count == 6:
        _write_6(weights, rows, stride, out, size)
    elif count == 4:
        _write_4(weights, rows, stride, out, size)
    else:
        _write_2(weights, rows, stride, out, size)


@compiled
def _add_few(count, weights, rows, stride, out, size):  # type: ignore[no-untyped-def]
    if count == 5:
        _add_5(weights, rows, stride, out, size)
    elif count == 3:
        _add_3(weights, rows, stride, out, size)
    elif count == 1:
        _add_1(weights, rows, stride, out, size)
    elif count == 8:
        _add_8(weights, rows, stride, out, size)
    elif count == 2:
        _add_2(weights, rows, stride, out, size)
    elif count == 7:
        _add_7(weights, rows, stride, out, size)
    elif count == 4:
        _add_4(weights, rows, stride, out, size)
    else:
        _add_6(weights, rows, stride, out, size)


@compiled
def write_sum(count, weights, rows, stride, out, size):  # type: ignore[no-untyped-def]
    """Write the sum of ``count`` rows, weighted; there must be one at least."""
    few = min(count, _AT_ONCE)
    _write_few(few, weights, rows, stride, out, size)
    if count > few:
        add_sum(count - few, weights + FLOAT * few, rows + FLOAT * few * stride, stride, out, size)


@compiled
def add_sum(count, weights, rows, stride, out, size):  # type: ignore[no-untyped-def]
    """Add the sum of ``count`` rows, weighted."""
    for first in range(0, count, _AT_ONCE):
        few = min(count - first, _AT_ONCE)
        _add_few(few, weights + FLOAT * first, rows + FLOAT * first * stride, stride, out, size)
