"""Wigner matrices of edges, packed: the rows of |m| <= mmax alone, in the order of `Layout`.

A matrix of degree l is  Z(alpha) J Z(beta) J Z(gamma)  with fairchem's constant J and turns Z about the axis, which mix
m with -m alone. So a turn is two products of numbers, not of matrices, and the rows left out are never computed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from e3nn import o3
from fairchem.core.models.equiformer_v2 import wigner

from dens_plugin.nn.so2.layout import Layout


class _Degree(NamedTuple):
    """Constants of a degree l, of which n = 2 min(l, mmax) + 1 orders are kept, from the lowest on.

    Attributes:
        matrix: (2 l + 1, 2 l + 1), J.
        places: (n (2 l + 1),) of the rows' numbers among those of a packed rotation.
    """

    matrix: torch.Tensor
    places: torch.Tensor


class _Turn(NamedTuple):
    """Cosines and sines (E, 2 l + 1) of the multiples of an angle, from l times it down to -l times."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def by(cls, angle: torch.Tensor, lmax: int) -> _Turn:
        multiples = angle[:, None] * torch.arange(lmax, -lmax - 1, -1, dtype=angle.dtype, device=angle.device)
        return cls(multiples.cos(), multiples.sin())

    def of(self, largest: int) -> _Turn:
        """The multiples up to a largest one."""
        middle = self.cos.shape[1] // 2
        return _Turn(*(part[:, middle - largest : middle + largest + 1] for part in self))

    def times(self, matrix: torch.Tensor) -> torch.Tensor:
        """Z times a matrix (2 l + 1, k), in the rows that this has: (E, n, k)."""
        rows = slice((len(matrix) - self.cos.shape[1]) // 2, (len(matrix) + self.cos.shape[1]) // 2)
        return self.cos[:, :, None] * matrix[rows] + self.sin[:, :, None] * matrix.flip(0)[rows]

    def behind(self, matrices: torch.Tensor) -> torch.Tensor:
        """Matrices (E, n, 2 l + 1) times Z."""
        return matrices * self.cos[:, None] - matrices.flip(2) * self.sin[:, None]


def rotations(frames: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(E, P) rows of the Wigner matrices, of fairchem's angles, in the precision of the frames (`Edges.packed`).

    Args:
        frames: (E, 3, 3) rotations to the frames of the edges.
        layout: of the rows.
    """
    with torch.autocast(frames.device.type, enabled=False):
        if frames.is_cuda:
            return _at_once(_angles(frames), _all_degrees(layout, frames.device, frames.dtype))
        turns = [_Turn.by(angle, layout.lmax) for angle in _angles(frames)]
        out = frames.new_empty(len(frames), layout.packed_starts[-1])
        for degree, (matrix, places) in enumerate(_degrees(layout, frames.device, frames.dtype)):
            alpha, beta, gamma = (turn.of(degree) for turn in turns)
            rows = beta.behind(alpha.of(min(degree, layout.mmax)).times(matrix)) @ matrix
            out.index_copy_(1, places, gamma.behind(rows).flatten(1))
    return out


class _AllDegrees(NamedTuple):
    """Constants of all P numbers of a packed rotation: each of a row m and a column j of its degree's matrix.

    Attributes:
        multiples: (2 lmax + 1,) of an angle, from lmax times it down.
        of_rows: (P,) which of the multiples belongs to the row.
        of_columns: (P,) and to the column.
        direct: (P,) of J, in the row.
        flipped: (P,) of J, in the row of -m.
        opposite: (P,) place of the number in the opposite column.
        matrix: (P, P) of J, from the numbers of a row to those of the same row.
    """

    multiples: torch.Tensor
    of_rows: torch.Tensor
    of_columns: torch.Tensor
    direct: torch.Tensor
    flipped: torch.Tensor
    opposite: torch.Tensor
    matrix: torch.Tensor


def _at_once(angles: tuple[torch.Tensor, ...], constants: _AllDegrees) -> torch.Tensor:
    """(E, P) for all degrees together, which for a GPU is less to ask for than to compute one by one."""
    tables = [(multiples.cos(), multiples.sin()) for multiples in (a[:, None] * constants.multiples for a in angles)]
    cos, sin = (table.index_select(1, constants.of_rows) for table in tables[0])
    rows = (cos * constants.direct).addcmul_(sin, constants.flipped)
    rows = _turned(rows, tables[1], constants) @ constants.matrix
    return _turned(rows, tables[2], constants)


def _turned(rows: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], constants: _AllDegrees) -> torch.Tensor:
    """Rows times a turn about the axis."""
    cos, sin = (part.index_select(1, constants.of_columns) for part in table)
    return (rows * cos).addcmul_(rows.index_select(1, constants.opposite), sin, value=-1)


@functools.cache
def _all_degrees(layout: Layout, device: torch.device, dtype: torch.dtype) -> _AllDegrees:
    """Made once, as a copy to a GPU waits for it."""
    count, lmax = layout.packed_starts[-1], layout.lmax
    numbers = torch.zeros(3, count, dtype=torch.long, device="cpu")
    values = torch.zeros(2, count, dtype=dtype, device="cpu")
    matrix = torch.zeros(count, count, dtype=dtype, device="cpu")
    for degree, of_degree in enumerate(_degrees(layout, torch.device("cpu"), dtype)):
        largest, size = min(degree, layout.mmax), 2 * degree + 1
        for row, places in enumerate(of_degree.places.unflatten(0, (-1, size))):
            own, other = degree - largest + row, degree + largest - row  # rows of J
            numbers[0, places] = lmax - largest + row
            numbers[1, places] = lmax - degree + torch.arange(size, device="cpu")
            numbers[2, places] = places.flip(0)
            values[:, places] = torch.stack([of_degree.matrix[own], of_degree.matrix[other]])
            matrix[places[:, None], places] = of_degree.matrix
    with torch.inference_mode(False):  # whose tensors no later training step could use
        multiples = torch.arange(lmax, -lmax - 1, -1, dtype=dtype, device=device)
        rows, columns, opposite = numbers.to(device)
        return _AllDegrees(multiples, rows, columns, *values.to(device), opposite, matrix.to(device))


def _angles(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(E,) each: frames are a turn by gamma, then beta about the first axis, then alpha about the second."""
    alpha, beta = o3.xyz_to_angles(frames[:, :, 1])
    cos, sin = alpha.cos(), alpha.sin()
    x, z = (cos * frames[:, 0, column] - sin * frames[:, 2, column] for column in (0, 2))
    return alpha, beta, torch.atan2(z, x)


@functools.cache
def _degrees(layout: Layout, device: torch.device, dtype: torch.dtype) -> tuple[_Degree, ...]:
    """Made once, as a copy to a GPU waits for it.

    Raises:
        ValueError: for degrees of which fairchem has no constant.
    """
    if layout.lmax >= len(wigner._Jd):
        raise ValueError(f"lmax must be at most {len(wigner._Jd) - 1}, got {layout.lmax}")
    start = dict(zip(layout.coefficients, layout.packed_starts, strict=False))
    orders = [range(-min(degree, layout.mmax), min(degree, layout.mmax) + 1) for degree in range(layout.lmax + 1)]
    with torch.inference_mode(False):  # whose tensors no later training step could use
        return tuple(
            _Degree(
                wigner._Jd[degree].to(device=device, dtype=dtype),
                torch.tensor([start[degree, m] + j for m in of_degree for j in range(2 * degree + 1)], device=device),
            )
            for degree, of_degree in enumerate(orders)
        )
