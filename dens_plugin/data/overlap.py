"""Atoms closer to each other than any bond, wherever a model is to compute something of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from dens_plugin.cells import LEAST_VOLUME, volume, whole_cell
from dens_plugin.data.structures import from_data

if TYPE_CHECKING:
    from torch_geometric.data import Data

OVERLAP = 0.4  # Å; the shortest bond, of H2, has 0.74
ONE_PLACE = 0.01  # Å, up to which fairchem takes two atoms for one, so that neither has an edge to the other
OVERLAP_REMEDY = "remove them, or check cell, pbc and the unit of length"


class Overlap(NamedTuple):
    """The closest two atoms of a structure, which are less than `OVERLAP` apart.

    Attributes:
        first: index of an atom.
        second: index of the other.
        distance: Å, across faces of the cell where that is shorter.
    """

    first: int
    second: int
    distance: float

    def __str__(self) -> str:
        where = "at one place" if self.distance <= ONE_PLACE else f"{self.distance:.2g} Å apart"
        return f"atoms {self.first} and {self.second} {where} (less than {OVERLAP} Å)"


def overlap(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Overlap | None:
    """The closest two of some atoms, if they are less than `OVERLAP` apart.

    Args:
        positions: (N, 3) Å, finite.
        cell: (3, 3) Å.
        pbc: (3,).
    """
    cell, pbc = whole_cell(cell, pbc), np.asarray(pbc, dtype=bool)
    if len(positions) < 2 or volume(cell) < LEAST_VOLUME:
        return None
    inverse = np.linalg.inv(cell)
    scaled = positions @ inverse  # (N, 3)
    wrapped = np.where(pbc, (scaled % 1.0) % 1.0, scaled - scaled.min(axis=0))  # once more, as -1e-17 % 1 is 1
    # Atoms this close differ by less in scaled coordinates than this, whatever the shape of the cell.
    reach = min(OVERLAP * np.linalg.norm(inverse, 2), 0.49)
    pairs = cKDTree(wrapped, boxsize=np.where(pbc, 1.0, 0.0)).query_pairs(reach, output_type="ndarray")  # (P, 2)
    if len(pairs) == 0:
        return None
    difference = wrapped[pairs[:, 0]] - wrapped[pairs[:, 1]]
    difference -= np.where(pbc, np.round(difference), 0.0)
    distances = np.linalg.norm(difference @ cell, axis=1)
    nearest = int(distances.argmin())
    if distances[nearest] >= OVERLAP:
        return None
    first, second = sorted(map(int, pairs[nearest]))
    return Overlap(first, second, float(distances[nearest]))


def overlap_of(structure: Data) -> Overlap | None:
    """`overlap` of a record of a data set; one with a cell and without ``pbc`` is periodic."""
    known = from_data(structure)
    return overlap(known.positions, known.cell, known.pbc)
