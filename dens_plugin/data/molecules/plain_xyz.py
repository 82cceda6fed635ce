"""XYZ files as MD17, MD22 and sGDML have them: the comment line is the energy, a row has element, place and force."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from dens_plugin.data.molecules.frames import Frames, molecule_frame
from dens_plugin.data.molecules.units import Units
from dens_plugin.data.structures import Structure

_ENERGY = re.compile(r"\s*(?:[Ee]nergy\s*[=:]?\s*)?([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)\s*")


def is_plain_xyz(path: Path) -> bool:
    """Whether a file is XYZ with nothing but an energy in its comment line."""
    if path.suffix != ".xyz" or not path.is_file():
        return False
    with open(path, errors="replace") as file:
        first, second = file.readline(), file.readline()
    return first.strip().isdecimal() and _ENERGY.fullmatch(second) is not None


def open_plain_xyz(path: Path, units: Units | None, option: str = "--units") -> Frames:
    """Read a file.

    Args:
        path: The file.
        units: What it is in.
        option: What the user calls them, for the messages.

    Raises:
        ValueError: If it does not say its units, as it never does, or is not whole.
    """
    if units is None:
        raise ValueError(f"{path} does not say in which units it is: give {option}; MD17 and MD22 are in kcal/mol.")
    frames = list(_frames(path, units))
    if not frames:
        raise ValueError(f"{path} holds no frames: copy or download it again.")
    return Frames(path, len(frames), frames.__getitem__, units, f"give {option}", names=("energy", "forces"))


def _frames(path: Path, units: Units) -> Iterator[Structure]:
    with open(path) as file:
        for index, head in enumerate(iter(file.readline, "")):
            if not head.strip():
                return
            where = f"{path}, frame {index}"
            comment = _ENERGY.fullmatch(file.readline())
            if not head.strip().isdecimal() or comment is None:
                raise ValueError(f"{where} must begin with a number of atoms and an energy: copy or download it again.")
            rows = [file.readline().split() for _ in range(int(head))]
            yield _frame(rows, float(comment[1]), where, index, units)


def _frame(rows: list[list[str]], energy: float, where: str, index: int, units: Units) -> Structure:
    foreign = next((row[0] for row in rows if len(row) == 7 and not atomic_numbers.get(row[0])), None)
    if foreign is not None:
        raise ValueError(f"{where} has an unknown element '{foreign}': correct the file, or remove the frame.")
    if any(len(row) != 7 for row in rows):
        raise ValueError(f"{where} has a row that is not element, x, y, z and a force: copy or download it again.")
    try:
        values = np.array([[float(word) for word in row[1:]] for row in rows])
    except ValueError as error:
        raise ValueError(f"{where}: {error}: copy or download it again.") from error
    return molecule_frame(
        np.array([atomic_numbers[row[0]] for row in rows]),
        units.length * values[:, :3],
        energy=units.energy * energy,
        forces=units.forces * values[:, 3:],
        fid=index,
    )
