"""Where the orders m are among an edge's coefficients, and among factors that multiply these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from dens_plugin.nn.so2.layout import Layout


class Order(NamedTuple):
    """Where an order m is: among the S coefficients, as 1 or 2 signs of so many degrees, and among the R factors.

    Attributes:
        is_first: whether no order before it has these factors.
    """

    start: int
    signs: int
    degrees: int
    rows: slice
    is_first: bool

    def of(self, features: torch.Tensor) -> torch.Tensor:
        """(e, signs, degrees, C) view of its coefficients."""
        both = features[:, self.start : self.start + self.signs * self.degrees]
        return both.unflatten(1, (self.signs, self.degrees))


def orders(layout: Layout, num_factors: int) -> Iterator[Order]:
    """For every m from 0 on."""
    shares_orders = num_factors == layout.lmax + 1 and layout.mmax > 0
    first = 0
    for m in range(layout.mmax + 1):
        count = layout.degrees_of(m)
        rows = slice(m, m + count) if shares_orders else slice(first, first + count)
        yield Order(layout.start_of(m), 1 if m == 0 else 2, count, rows, m == 0 or not shares_orders)
        first += count


def factor_rows(layout: Layout, num_factors: int) -> list[int]:
    """For each of S coefficients its row among R factors."""
    every = orders(layout, num_factors)
    return [order.rows.start + n for order in every for _ in range(order.signs) for n in range(order.degrees)]
