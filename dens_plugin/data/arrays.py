"""Whether the arrays of the structures belong together, asked before anything is computed from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from dens_plugin.data.structures import Structure

_LAST_ELEMENT = len(chemical_symbols) - 1


class Break(NamedTuple):
    """Why nothing can be computed from a structure: what to do, and its details, empty for a sound structure."""

    remedy: str
    details: Callable[[Structure], str]


class Partial(NamedTuple):
    """A field that some structures have and others lack: its name, how many lack it, the place of the first."""

    field: str
    lacking: int
    first: str


class Presence:
    """Counts the optional fields that structures lack; a batch needs each of them in all structures or in none."""

    def __init__(self) -> None:
        self.looked_at = 0
        self._lacking: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, structure: Structure, place: str) -> None:
        """Count one structure, which the messages call ``place``."""
        self.looked_at += 1
        for field in structure.absent:
            self._lacking[field] += 1
            self._first.setdefault(field, place)

    def partial(self) -> list[Partial]:
        """The fields that some structures have and others lack, by name."""
        found = sorted(self._lacking.items())
        return [Partial(field, count, self._first[field]) for field, count in found if count < self.looked_at]


def _sizes(structure: Structure) -> str:
    natoms = len(np.atleast_1d(structure.positions))
    arrays = {
        "pos": (structure.positions, (natoms, 3)),
        "atomic_numbers": (structure.numbers, (natoms,)),
        "forces": (structure.forces, (natoms, 3)),
        "fixed": (structure.fixed, (natoms,)),
        "tags": (structure.tags, (natoms,)),
    }
    wrong = [
        f"{name} {array.shape} for {shape}"
        for name, (array, shape) in arrays.items()
        if array is not None and array.shape != shape
    ]
    return f"{natoms} atoms by pos, {', '.join(wrong)}" if wrong else ""


def _foreign_numbers(structure: Structure) -> str:
    numbers = np.unique(structure.numbers)
    foreign = numbers[(numbers < 1) | (numbers > _LAST_ELEMENT)]
    return ", ".join(map(str, foreign.tolist()))


BREAKS = {
    "arrays of other sizes than their atoms": Break(
        "left out of the numbers above; remove them, or convert them anew.", _sizes
    ),
    "atomic numbers of no element": Break(
        f"left out of the numbers above; elements have 1 to {_LAST_ELEMENT}: remove what only fills up.",
        _foreign_numbers,
    ),
}
