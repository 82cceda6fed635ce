"""The npz files of MD17, revised MD17, sGDML and MD22: one molecule, many frames.

| kind | keys | units |
|---|---|---|
| revised MD17 | ``nuclear_charges``, ``coords``, ``energies``, ``forces`` | kcal/mol and Å, by documentation alone |
| MD17, MD22, sGDML | ``z``, ``R``, ``E``, ``F`` | ``e_unit`` and ``r_unit``, which files of 2017 may lack |

References:
    Chmiela et al., Science Advances 3, e1603015 (2017); Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1,
    045018 (2020), https://doi.org/10.6084/m9.figshare.12672038; http://www.sgdml.org.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dens_plugin.data.molecules.frames import molecule_frame
from dens_plugin.data.molecules.units import KCAL, Units, from_names
from dens_plugin.data.structures import USUAL, Keys, Structure

_AGAIN = "copy or download it again."
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
PARTS = ("train", "val", "test")
_REAL = "iuf"  # numpy's letters for kinds of numbers


class _Kind(NamedTuple):
    """How an archive calls its arrays."""

    name: str
    numbers: str
    positions: str
    energies: str
    forces: str


_KINDS = (
    _Kind("revised MD17", "nuclear_charges", "coords", "energies", "forces"),
    _Kind("sGDML", "z", "R", "E", "F"),
)


class Archive(NamedTuple):
    """The arrays of a file, in its own units.

    Attributes:
        numbers: Atomic numbers, shape (N,).
        positions: Shape (B, N, 3).
        energies: Shape (B,).
        forces: Shape (B, N, 3); None where they are not wanted.
        units: What they are in by the file's own words; None if it does not say.
        usual: What files of this kind are in by their documentation; None if that differs.
        parts: Indices of the frames for train, val and test, where the file itself divides them.
    """

    numbers: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray | None
    units: Units | None
    usual: Units | None
    parts: Mapping[str, np.ndarray] = {}

    def structure(self, index: int, units: Units) -> Structure:
        """One frame in eV and Å, with ``fid`` its index."""
        return molecule_frame(
            self.numbers,
            units.length * self.positions[index].astype(float),
            energy=units.energy * float(self.energies[index]),
            forces=None if self.forces is None else units.forces * self.forces[index].astype(float),
            fid=index,
        )


def read_archive(path: Path, keys: Keys = USUAL, *, forces: bool = True) -> Archive:
    """Read an npz file.

    Args:
        path: The file.
        keys: Of its energies and forces, where they are not the usual ones.
        forces: Whether they are wanted.

    Raises:
        ValueError: If it is truncated or none, lacks an array, or the arrays are no numbers or do not belong together.
    """
    with open_npz(path) as file:
        return _archive(path, file, keys, forces=forces)


def open_npz(path: Path) -> np.lib.npyio.NpzFile:
    """Open an npz file.

    Raises:
        ValueError: If it is truncated, or none.
    """
    try:
        file = np.load(path, allow_pickle=False)
    except (*_BROKEN, ValueError) as error:
        raise ValueError(f"{path} is truncated or no npz file ({error}): {_AGAIN}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is an npy file of a single array and no npz file, whatever its name: {_AGAIN}")
    return file


def read_array(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of an open npz file.

    Raises:
        ValueError: If it is damaged, or holds Python objects, which nobody should unpickle.
    """
    try:
        return file[name]
    except (*_BROKEN, ValueError) as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{path}: {name} cannot be read, as it is an array of Python objects, which could be any program: save "
                "it anew as an array of numbers, with a dtype such as int or float."
            ) from error
        raise ValueError(f"{path}: {name} cannot be read ({error}): {_AGAIN}") from error


def _archive(path: Path, file: np.lib.npyio.NpzFile, keys: Keys, *, forces: bool) -> Archive:
    kind = next((kind for kind in _KINDS if kind.numbers in file and kind.positions in file), None)
    if kind is None:
        known = " or ".join(", ".join(kind[1:]) for kind in _KINDS)
        raise ValueError(f"{path} has the arrays {', '.join(file.files)}, not {known}: is it a set of molecules?")
    kind = kind._replace(energies=keys.energy or kind.energies, forces=keys.forces or kind.forces)
    needed = (kind.energies, kind.forces) if forces else (kind.energies,)
    missing = [name for name in needed if name not in file]
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}: training needs energies and forces. It has "
            f"{', '.join(file.files)}: --energy-key and --forces-key name others, --energies-only does without forces."
        )
    archive = Archive(
        numbers=_whole_numbers(path, file, kind.numbers),
        positions=_numbers(path, file, kind.positions),
        energies=_numbers(path, file, kind.energies).reshape(-1),
        forces=_numbers(path, file, kind.forces) if forces else None,
        units=_named_units(path, file),
        usual=KCAL if kind.name == "revised MD17" else None,
        parts={name: _whole_numbers(path, file, name) for name in PARTS if name in file},
    )
    _require_shapes(path, archive)
    return archive


def _named_units(path: Path, file: np.lib.npyio.NpzFile) -> Units | None:
    if "e_unit" not in file:
        return None
    length = _text(path, file, "r_unit") if "r_unit" in file else "Ang"
    return from_names(_text(path, file, "e_unit"), length, str(path))


def _text(path: Path, file: np.lib.npyio.NpzFile, name: str) -> str:
    value = read_array(path, file, name)
    if value.size != 1:
        raise ValueError(f"{path}: {name} must be the name of one unit, got {value.size} values: correct the file.")
    item = value.item()
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)


def _whole_numbers(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    values = _numbers(path, file, name)
    broken = values[~np.isfinite(values) | (values != np.round(values))]
    if broken.size:
        raise ValueError(f"{path}: {name} must be atomic numbers, got {broken.flat[0]}: {_AGAIN}")
    return values.astype(int)


def _numbers(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    values = read_array(path, file, name)
    if values.dtype.kind not in _REAL:
        raise ValueError(f"{path}: {name} must hold real numbers, got {values.dtype}: {_AGAIN}")
    return values


def _require_shapes(path: Path, archive: Archive) -> None:
    expected = (len(archive.energies), archive.numbers.size, 3)
    forces = expected if archive.forces is None else archive.forces.shape
    if archive.numbers.ndim != 1 or archive.positions.shape != expected or forces != expected:
        raise ValueError(
            f"{path}: atomic numbers {archive.numbers.shape}, positions {archive.positions.shape}, energies "
            f"{archive.energies.shape} and forces {forces} do not belong together, expected (N,), "
            f"(B, N, 3), (B,) and (B, N, 3): {_AGAIN}"
        )
