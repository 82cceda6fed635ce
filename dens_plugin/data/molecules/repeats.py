"""Finding structures that came before, also where another file has rounded their positions otherwise."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

from dens_plugin.data.structures import Structure

TOLERANCE = 1e-4  # Å a coordinate; text files keep four digits or more
_PROJECTIONS = 4
_WIDTH = 10  # of a bin, in units of what a projection may differ by


class Repeats:
    """Remembers structures, and finds the equal ones: the same atoms in the same order, place and periodic cell.

    Structures are sorted into bins by a few random projections of their coordinates; only those of a bin are compared.
    The cell of a structure without periodicity says nothing about it and does not count.
    """

    def __init__(self) -> None:
        self._bins: dict[tuple, list[tuple[np.ndarray, str]]] = {}

    def forget(self) -> None:
        """Start anew, where nothing that comes can equal what came before."""
        self._bins = {}

    def first(self, structure: Structure, where: str) -> str | None:
        """Where an equal structure stood before; None if there was none, and then this one is remembered.

        Args:
            structure: The structure.
            where: What to call it.
        """
        kind = structure.numbers.astype(int).tobytes(), structure.pbc.tobytes()
        coordinates = np.concatenate([structure.positions, structure.cell[structure.pbc]]).ravel()
        reach = TOLERANCE * len(coordinates) ** 0.5
        projected = _projections(len(coordinates)) @ coordinates / (_WIDTH * reach)
        near = zip(np.floor(projected - 1 / _WIDTH), np.floor(projected + 1 / _WIDTH), strict=True)
        for place in product(*map(set, near)):
            for other, name in self._bins.get((*kind, *place), ()):
                if np.abs(other - coordinates).max() <= TOLERANCE:
                    return name
        self._bins.setdefault((*kind, *np.floor(projected)), []).append((coordinates.astype(np.float32), where))
        return None


@lru_cache
def _projections(size: int) -> np.ndarray:
    """Unit vectors, the same every time, shape (4, size): equal structures differ by at most ``reach`` along them."""
    vectors = np.random.default_rng(0).normal(size=(_PROJECTIONS, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
