"""Order of an edge's coefficients: by order m first, so that an SO(2) convolution finds each m in one piece.

m = 0 with l = 0 ... lmax, then for every m = 1 ... mmax: +m with l = m ... lmax, -m with l = m ... lmax. The rotation
of an edge (S, L) has these rows, and in the row of degree l only columns l² ... (l+1)² - 1 are not zero.
"""

from __future__ import annotations

import functools
import math

from dens_plugin.nn.backends.triton.availability import constexpr, jit, tl


@functools.cache
def degrees(coefficients: int, components: int) -> tuple[int, int]:
    """Largest degree and order, (lmax, mmax), of rotations with S coefficients and L = (lmax+1)² components.

    Raises:
        ValueError: if there are no such.
    """
    lmax = math.isqrt(components) - 1
    for mmax in range(lmax + 1):
        if (lmax + 1) ** 2 == components and _coefficients(lmax, mmax) == coefficients:
            return lmax, mmax
    raise ValueError(
        f"a rotation of {coefficients} coefficients and {components} components has no largest degree and order: "
        f"there must be (lmax+1)² components, and lmax+1 + 2·lmax + 2·(lmax-1) + ... coefficients"
    )


def radial_shared(rows: int, lmax: int, mmax: int) -> bool:
    """Whether radial functions with this number of rows are shared by all orders of a degree.

    Raises:
        ValueError: if there is neither a row per degree nor one per degree and |m|.
    """
    per_order = (_coefficients(lmax, mmax) + lmax + 1) // 2
    if rows not in (lmax + 1, per_order):
        raise ValueError(
            f"radial functions have {rows} rows, which is neither {lmax + 1} (one per degree) nor {per_order} "
            f"(one per degree and |m|) for lmax {lmax} and mmax {mmax}"
        )
    return rows == lmax + 1


def _coefficients(lmax: int, mmax: int) -> int:
    return lmax + 1 + sum(2 * (lmax + 1 - m) for m in range(1, mmax + 1))


@jit
def order_of(position):  # type: ignore[no-untyped-def]
    """|m| of a degree's coefficients, which the kernels take in the order 0, +1, -1, +2, -2, ..."""
    return (position + 1) // 2


@jit
def coefficient_of(position, degree, lmax: constexpr):  # type: ignore[no-untyped-def]
    """Index s of a degree's coefficient; orders 1 ... m-1 hold (m-1)(2 lmax + 2 - m) coefficients."""
    m = (position + 1) // 2
    start = tl.where(m == 0, 0, lmax + 1 + (m - 1) * (2 * lmax + 2 - m))
    negative = (position % 2 == 0) & (m > 0)
    return start + tl.where(negative, lmax + 1 - m, 0) + degree - m


@jit
def radial_row_of(m, degree, lmax: constexpr, shared: constexpr):  # type: ignore[no-untyped-def]
    """Row of the radial functions for a degree and |m|; orders 0 ... m-1 hold m (2 lmax + 3 - m) / 2 rows."""
    if shared:
        return m * 0 + degree
    else:  # noqa: RET505  (compiled by Triton, which knows no early return)
        return m * (2 * lmax + 3 - m) // 2 + degree - m
