"""Between the coefficients of spherical features and their values at the points of a grid.

    T_(a,b),(l,m) = P_b,(l,m) S_a,m        values = T x        (A B, C)  from  (S, C)

At A longitudes and B latitudes the spherical harmonics are products, and so are two small matrices cheaper than the
large one: first to the latitudes, for every order m, then to the longitudes. At the published size (S = 29, A = B = 18)
that is 4,230 multiplications instead of 9,396. Source of the product: Driscoll and Healy, doi:10.1006/aama.1994.1008.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional

from dens_plugin.nn.backends.cpu.s2_activation import ORDERS, Grid

_TOLERANCE = 1e-5  # of the product, relative to the largest entry: the matrices are rounded to float32


@dataclass(frozen=True)
class GridMatrix:
    """A matrix (G, S), and its two factors if it has them.

    Attributes:
        dense: (G, S), of which the G = A B points are sorted by longitude if there are factors.
        latitude: (K B, S), for each of K orders to all latitudes.
        longitude: (A, K).
        counts: the number of coefficients of each order, where those of an order stand together.
    """

    dense: torch.Tensor
    latitude: torch.Tensor | None = None
    longitude: torch.Tensor | None = None
    counts: tuple[int, ...] | None = None

    @classmethod
    def of(cls, matrix: torch.Tensor, orders: Sequence[int]) -> GridMatrix:
        """Factored where it is a product, and on a CPU: kernels for a GPU take it whole.

        Args:
            matrix: (B, A, S).
            orders: m of the S coefficients.
        """
        dense = matrix.transpose(0, 1).flatten(0, 1)
        if matrix.is_cuda:
            return cls(dense)
        latitude, longitude = _factors(matrix.double(), orders)
        product = torch.einsum("kbs,ak->abs", latitude, longitude).flatten(0, 1)
        if (product - dense).abs().max() > _TOLERANCE * dense.abs().max():
            return cls(dense)
        of_orders = [(order, len(list(run))) for order, run in itertools.groupby(orders)]
        counts = tuple(count for _, count in of_orders) if len(of_orders) == len(latitude) else None
        return cls(dense, latitude.flatten(0, 1).to(dense), longitude.to(dense), counts)

    def to(self, dtype: torch.dtype) -> GridMatrix:
        """In another precision; a reduced one would round between the factors, and gets none."""
        if dtype.itemsize < 4 or self.latitude is None or self.longitude is None:
            return GridMatrix(self.dense.to(dtype))
        return GridMatrix(self.dense.to(dtype), self.latitude.to(dtype), self.longitude.to(dtype), self.counts)

    @cached_property
    def for_loops(self) -> Grid | None:
        """The factors as `dens_plugin.nn.backends.cpu.s2_activation` takes them, if it does."""
        if self.latitude is None or self.longitude is None or self.counts is None or len(self.counts) not in ORDERS:
            return None
        latitude = self.latitude.unflatten(0, (len(self.counts), -1)).sum(0)  # of one order each, the others are zero
        counts = torch.tensor(self.counts, device=latitude.device)
        longitude = functional.pad(self.longitude, (0, 0, 0, len(self.longitude) % 2))
        return Grid(latitude, latitude.t().contiguous(), longitude.contiguous(), counts)

    def without_scalars(self) -> GridMatrix:
        """Without the first coefficient."""
        latitude = None if self.latitude is None else self.latitude[:, 1:]
        return GridMatrix(self.dense[:, 1:], latitude, self.longitude)

    def values(self, features: torch.Tensor) -> torch.Tensor:
        """(E, G, C) from features (E, S, C)."""
        if self.latitude is None or self.longitude is None:
            return torch.matmul(self.dense, features)
        at_latitudes = torch.matmul(self.latitude, features).view(len(features), self.longitude.shape[1], -1)
        return torch.matmul(self.longitude, at_latitudes).view(len(features), -1, features.shape[2])

    def write_coefficients(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Write the transpose of `values`, (E, S, C), of values (E, G, C) into ``out``."""
        matrix = self.dense
        if self.latitude is not None and self.longitude is not None:
            by_longitude = values.view(len(values), len(self.longitude), -1)
            values = torch.matmul(self.longitude.t(), by_longitude).view(len(values), -1, values.shape[2])
            matrix = self.latitude
        torch.bmm(matrix.t().expand(len(values), *matrix.t().shape), values, out=out)


def _factors(matrix: torch.Tensor, orders: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, B, S) and (A, K): the closest product in which all coefficients of an order depend alike on longitude."""
    distinct = list(dict.fromkeys(orders))
    latitude = matrix.new_zeros(len(distinct), len(matrix), matrix.shape[2])
    longitude = matrix.new_empty(matrix.shape[1], len(distinct))
    for number, m in enumerate(distinct):
        columns = [column for column, order in enumerate(orders) if order == m]
        rows = matrix[:, :, columns].transpose(1, 2)  # (B, n, A), all multiples of one
        flat = rows.flatten(0, 1)
        longitude[:, number] = flat[flat.norm(dim=1).argmax()]
        of_order = longitude[:, number]
        latitude[number][:, columns] = rows @ of_order / (of_order @ of_order)
    return latitude, longitude
