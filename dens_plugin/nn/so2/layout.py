"""The coefficients of an edge's features, sorted by order m so that every SO(2) convolution reads one block.

m = 0:  l = 0 ... lmax        then for m = 1 ... mmax:  +m with l = m ... lmax,  -m with l = m ... lmax
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch


class Constants(NamedTuple):
    """What depends on a layout alone, where it is needed.

    Attributes:
        positions_by_degree: (S,) position of every coefficient among the S sorted by degree.
        by_degree: (S,) the coefficients sorted by degree: the inverse.
        scale: (S,) factor that makes up for the orders left out when features are rotated back.
        of_packed: (P,) places of the numbers of a packed rotation in one with its zeros, (S (lmax + 1)^2,).
    """

    positions_by_degree: torch.Tensor
    by_degree: torch.Tensor
    scale: torch.Tensor
    of_packed: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """The order of the S coefficients (l, m) of an edge.

    Attributes:
        lmax: largest degree.
        mmax: largest order; the rotated features of an edge have no coefficients beyond it (eSCN, arXiv:2302.03655).
    """

    lmax: int
    mmax: int

    @cached_property
    def coefficients(self) -> tuple[tuple[int, int], ...]:
        """(l, m) of all S coefficients."""
        signed = [0, *(sign * m for m in range(1, self.mmax + 1) for sign in (1, -1))]
        return tuple((degree, m) for m in signed for degree in range(abs(m), self.lmax + 1))

    @cached_property
    def by_degree(self) -> tuple[int, ...]:
        """Positions of the coefficients, sorted by degree and then by order."""
        return tuple(sorted(range(len(self)), key=self.coefficients.__getitem__))

    @cached_property
    def packed_starts(self) -> tuple[int, ...]:
        """(S + 1,) first number of every coefficient in a packed rotation, and P, how many there are.

        A row of a rotation is zero but for the 2 l + 1 components of its coefficient's degree; packed, the rows are
        these alone, one behind the other.
        """
        return tuple(itertools.accumulate((2 * degree + 1 for degree, _ in self.coefficients), initial=0))

    def __len__(self) -> int:
        return len(self.coefficients)

    def degrees_of(self, m: int) -> int:
        """The number of degrees that have the order m."""
        return self.lmax + 1 - m

    def start_of(self, m: int) -> int:
        """Where the coefficients of the orders m and -m begin."""
        return self.degrees_of(0) + sum(2 * self.degrees_of(k) for k in range(1, m)) if m else 0

    def orders_of(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        """For every m from 0 on the coefficients of m and -m, of features (E, S, C)."""
        for m in range(self.mmax + 1):
            yield features[:, self.start_of(m) : self.start_of(m + 1)]

    def constants_for(self, features: torch.Tensor) -> Constants:
        """On the device and in the precision of some features, made once for each, as a copy to a GPU waits for it."""
        return _constants(self, features.device, features.dtype)


@functools.cache
def _constants(layout: Layout, device: torch.device, dtype: torch.dtype) -> Constants:
    kept = 2 * layout.mmax + 1
    scale = [math.sqrt(max(2 * degree + 1, kept) / kept) for degree, _ in layout.coefficients]
    columns = (layout.lmax + 1) ** 2
    rows = enumerate(layout.coefficients)
    places = [s * columns + j for s, (degree, _) in rows for j in range(degree**2, (degree + 1) ** 2)]
    with torch.inference_mode(False):  # whose tensors no later training step could use
        order = torch.tensor(layout.by_degree, device=device)
        return Constants(
            order.argsort(),
            order,
            torch.tensor(scale, dtype=dtype, device=device),
            torch.tensor(places, device=device),
        )
