"""What makes a frame of molecules or crystals useless for training, found before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from ase import Atoms
from ase.formula import Formula
from ase.neighborlist import neighbor_list

from dens_plugin.data.findings import ISOLATION, OVERLAP
from dens_plugin.data.molecule_files import Frames
from dens_plugin.data.structures import Structure


class FrameCheck:
    """Looks at frames one by one and remembers what it saw, over all files of a data set.

    Args:
        mixed: Whether frames may have different compositions.
    """

    def __init__(self, *, mixed: bool) -> None:
        self._mixed = mixed
        self._formula: tuple[str, str] | None = None
        self._seen: dict[bytes, str] = {}

    def add(self, frames: Frames, index: int) -> str | None:
        """Read one frame and check it.

        Returns:
            Where the same structure stood before; None if it did not.

        Raises:
            ValueError: If it cannot be trained on.
        """
        where = f"{frames.path}, frame {index}"
        structure = frames.read(index)
        _require_labels(structure, where)
        _require_finite(structure, where)
        _require_neighbours(structure, where)
        self._require_same_formula(structure, where)
        key = hashlib.blake2b(
            structure.numbers.tobytes() + structure.positions.tobytes() + structure.cell.tobytes(), digest_size=16
        ).digest()
        first = self._seen.setdefault(key, where)
        return None if first == where else first

    def _require_same_formula(self, structure: Structure, where: str) -> None:
        formula = Formula.from_list(Atoms(numbers=structure.numbers).get_chemical_symbols()).format("hill")
        if self._formula is None:
            self._formula = formula, where
        if formula != self._formula[0] and not self._mixed:
            raise ValueError(
                f"{where} is {formula}, {self._formula[1]} is {self._formula[0]}: give one molecule at a time, or "
                "--mixed if the data set is meant to have several."
            )


def require_different(repeats: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError for the first of some repeated frames, each with where it stood before."""
    repeats = list(repeats)
    if repeats:
        raise ValueError(
            f"{len(repeats)} frame{'s' if len(repeats) > 1 else ''} came before: {repeats[0][0]} is {repeats[0][1]}; "
            "a model would be tested on what it was trained on. Leave them out by --drop-duplicates."
        )


def _require_labels(structure: Structure, where: str) -> None:
    missing = [name for name in ("energy", "forces") if getattr(structure, name) is None]
    if missing:
        raise ValueError(
            f"{where} has no {' and no '.join(missing)}: training needs both; extended XYZ has them as `energy=` and a "
            "column `forces`."
        )
    if structure.forces.shape != structure.positions.shape or len(structure.numbers) != len(structure.positions):
        raise ValueError(
            f"{where} has {len(structure.numbers)} atoms, {len(structure.positions)} positions and "
            f"{len(structure.forces)} forces: they must agree."
        )


def _require_finite(structure: Structure, where: str) -> None:
    for name in ("positions", "cell", "energy", "forces"):
        if not np.isfinite(getattr(structure, name)).all():
            raise ValueError(f"{where} has NaN or infinite {name}: remove the frame.")


def _require_neighbours(structure: Structure, where: str) -> None:
    if len(structure.numbers) == 0:
        raise ValueError(f"{where} has no atoms: remove the frame.")
    nearest = _nearest(structure)
    if nearest.min() < OVERLAP:
        raise ValueError(
            f"{where}: atom {nearest.argmin()} is {nearest.min():.3g} Å from another: are positions in Å, and cell and "
            "pbc right?"
        )
    if len(nearest) > 1 and nearest.max() > ISOLATION:
        raise ValueError(
            f"{where}: atom {nearest.argmax()} has no neighbour within {ISOLATION:g} Å: are positions in Å, the "
            "molecule whole, and cell and pbc right?"
        )


def _nearest(structure: Structure) -> np.ndarray:
    """Distance of every atom's nearest neighbour in Å, inf where it has none, shape (N,)."""
    if structure.pbc.any():
        return _nearest_periodic(structure)
    distances = np.linalg.norm(structure.positions[:, None] - structure.positions, axis=2)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


def _nearest_periodic(structure: Structure) -> np.ndarray:
    atoms = Atoms(structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc)
    nearest = np.full(len(atoms), np.inf)
    centers, distances = neighbor_list("id", atoms, ISOLATION)
    np.minimum.at(nearest, centers, distances)
    return nearest
