"""What makes a frame of molecules or crystals useless for training, found before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula
from ase.neighborlist import neighbor_list

from dens_plugin.data.arrays import BREAKS
from dens_plugin.data.findings import ISOLATION, OVERLAP
from dens_plugin.data.molecules.frames import Frames
from dens_plugin.data.molecules.repeats import Repeats
from dens_plugin.data.structures import Structure


class FrameCheck:
    """Looks at frames one by one and remembers what it saw, over all files of a data set.

    Args:
        mixed: Whether frames may have different compositions.
    """

    def __init__(self, *, mixed: bool) -> None:
        self._mixed = mixed
        self._formulas: dict[str, str] = {}  # of each composition the first frame
        self._periodicity: tuple[np.ndarray, str] | None = None
        self._repeats = Repeats()
        self._last: str | None = None
        self._charges: Counter[float] = Counter()
        self.molecules = Molecules()

    @property
    def formula(self) -> str | None:
        """The composition of all frames; None if they have several."""
        return next(iter(self._formulas)) if len(self._formulas) == 1 else None

    @property
    def elements(self) -> set[str]:
        """Those of all frames, by symbol."""
        return {symbol for formula in self._formulas for symbol in Formula(formula).count()}

    @property
    def is_charged(self) -> bool:
        """Whether a frame has a charge."""
        return any(self._charges)

    def warnings(self) -> Iterator[str]:
        """What no frame alone is refused for."""
        if self.is_charged:
            charges = ", ".join(
                f"{count:,} of {charge:+g}" for charge, count in sorted(self._charges.items()) if charge
            )
            yield (
                f"warning: charged structures ({charges}): the models know no charge, and take an ion for the neutral "
                "molecule of the same geometry. Leave them out by --exclude, or train on each charge by itself"
            )

    def add(self, frames: Frames, index: int) -> str | None:
        """Read one frame and check it.

        Returns:
            Where the same structure stood before; None if it did not.

        Raises:
            ValueError: If it cannot be trained on.
        """
        where = f"{frames.path}, frame {index}"
        structure = frames.read(index)
        _require_labels(structure, frames, where)
        _require_sound(structure, where)
        _require_neighbours(structure, where)
        self._require_same_formula(structure, where)
        self._require_same_periodicity(structure, where)
        self._charges[structure.charge] += 1
        molecule = structure.molecule or _formula(structure)
        self.molecules.add(frames, index, molecule)
        if frames.grouped and molecule != self._last:  # frames of other molecules cannot be equal
            self._repeats.forget()
        self._last = molecule
        return self._repeats.first(structure, where)

    def _require_same_formula(self, structure: Structure, where: str) -> None:
        formula = _formula(structure)
        self._formulas.setdefault(formula, where)
        if len(self._formulas) > 1 and not self._mixed:
            first, place = next(iter(self._formulas.items()))
            raise ValueError(
                f"{where} is {formula}, {place} is {first}: give one molecule at a time, or --mixed if the data set is "
                "meant to have several."
            )

    def _require_same_periodicity(self, structure: Structure, where: str) -> None:
        if self._periodicity is None:
            self._periodicity = structure.pbc, where
        first, place = self._periodicity
        if not (self._mixed or np.array_equal(structure.pbc, first)):
            raise ValueError(
                f"{where} has pbc {structure.pbc.tolist()}, {place} {first.tolist()}: give one kind at a time, or "
                "--mixed if the data set is meant to have several."
            )


class Molecules:
    """The molecule of each frame."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._of: dict[Path, np.ndarray] = {}

    def add(self, frames: Frames, index: int, molecule: str) -> None:
        """Remember a frame's."""
        if frames.path not in self._of:
            self._of[frames.path] = np.zeros(frames.length, dtype=np.int32)
        self._of[frames.path][index] = self._numbers.setdefault(molecule, len(self._numbers))

    def of(self, frames: Frames, indices: np.ndarray) -> np.ndarray:
        """The molecules of some frames as numbers, shape (n,)."""
        return self._of[frames.path][indices] if len(indices) else np.zeros(0, dtype=np.int32)

    def name(self, number: int) -> str:
        """What the data set calls it."""
        return list(self._numbers)[number]

    def __len__(self) -> int:
        return len(self._numbers)


def require_different(repeats: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError for the first of some repeated frames, each with where it stood before."""
    repeats = list(repeats)
    if repeats:
        raise ValueError(
            f"{len(repeats)} frame{'s' if len(repeats) > 1 else ''} came before: {repeats[0][0]} is {repeats[0][1]}; "
            "a model would be tested on what it was trained on. Leave them out by --drop-duplicates."
        )


def _formula(structure: Structure) -> str:
    return Formula.from_list([chemical_symbols[number] for number in structure.numbers]).format("hill")


def _require_labels(structure: Structure, frames: Frames, where: str) -> None:
    needed = ("energy", "forces") if frames.forces else ("energy",)
    missing = [name for name in needed if getattr(structure, name) is None]
    alone = " --energies-only does without forces." if missing == ["forces"] else ""
    has = f" It has {', '.join(frames.names)}." if frames.names else ""
    if missing and _has(frames.read(0), missing):
        raise ValueError(
            f"{where} has no {' and no '.join(missing)}, which the first frame has: a batch needs the same in all. "
            f"Remove the frame, or name it in --exclude.{alone}"
        )
    if missing:
        raise ValueError(
            f"{where} has no {' and no '.join(missing)}: extended XYZ has them as `energy=` and a column `forces`; "
            f"--energy-key and --forces-key give other names.{has}{alone}"
        )
    lacking = [name for name in frames.targets if name not in structure.properties]
    if lacking:
        raise ValueError(
            f"{where} has no number {' and no number '.join(lacking)}, which --targets is to keep: a value of the "
            f"comment line, in every frame.{has if not set(lacking) <= set(frames.names) else ''}"
        )
    if not frames.forces and structure.forces is not None:
        raise ValueError(f"{where} has forces, and others of this data set have none: a batch needs the same in all.")


def _has(structure: Structure, labels: Iterable[str]) -> bool:
    return all(getattr(structure, name) is not None for name in labels)


def _require_sound(structure: Structure, where: str) -> None:
    for name, kind in BREAKS.items():
        details = kind.details(structure)
        if details:
            raise ValueError(f"{where} has {name}: {details}: remove the frame, or correct it.")
    arrays = {name: getattr(structure, name) for name in ("positions", "cell", "energy", "forces")}
    for name, array in {**arrays, **structure.properties}.items():
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{where} has NaN or infinite {name}: remove the frame, or name it in --exclude.")
    if structure.is_flat:
        raise ValueError(
            f"{where} is periodic and its cell has no volume: give it one, or set pbc to F along vectors that are zero."
        )


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
    atoms = Atoms(structure.numbers, positions=structure.positions, cell=structure.whole_cell, pbc=structure.pbc)
    nearest = np.full(len(atoms), np.inf)
    centers, distances = neighbor_list("id", atoms, ISOLATION)
    np.minimum.at(nearest, centers, distances)
    return nearest
