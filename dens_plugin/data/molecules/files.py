"""Opening a file of molecules or crystals, whatever its kind, as frames in eV and Å."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dens_plugin.data.molecules.archives import read_archive
from dens_plugin.data.molecules.units import EV, Units, agree, from_choice
from dens_plugin.data.sources import open_source
from dens_plugin.data.structures import Structure

_RAW = "raw"  # where PyG's MD17 keeps its downloads, below its root
_NO_MOLECULES = ("metadata.npz", "split.npz", "normalizer_energy.npz", "normalizer_forces.npz")  # but beside LMDBs


class Frames(NamedTuple):
    """An open file.

    Attributes:
        path: Where it lies.
        length: Number of frames.
        read: The frame at an index, in eV and Å; ``fid`` is the index.
        units: What the file is in.
        remedy: What to do if it is not.
    """

    path: Path
    length: int
    read: Callable[[int], Structure]
    units: Units
    remedy: str


def open_frames(path: Path, *, units: str | None = None, option: str = "--units") -> Frames:
    """Open a file of structures with energies and forces.

    Args:
        path: An npz file of MD17, revised MD17, sGDML or MD22, extended XYZ (also .xz), an ASE database or another
            file of ASE, an LMDB; or a folder with one npz file, itself or in ``raw`` below it, as PyG's MD17 has.
        units: One of :data:`~dens_plugin.data.molecules.units.CHOICES`; None for what the file, or its kind, says.
        option: What the user calls ``units``, for the messages.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If it cannot be read, or does not say its units, or itself says others than ``units``.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a file of structures, or a folder with one.")
    path = _only_archive(path) if path.is_dir() else path
    chosen = None if units is None else from_choice(units)
    return _open_archive(path, chosen, option) if path.suffix == ".npz" else _open_ase(path, chosen, option)


def _only_archive(folder: Path) -> Path:
    """The npz file of a folder or of ``raw`` below it; the folder itself if it holds none."""
    found = sorted([*folder.glob("*.npz"), *(folder / _RAW).rglob("*.npz")])
    found = [file for file in found if file.name not in _NO_MOLECULES]
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise ValueError(f"{folder} holds several molecules: give one of {names}.")
    return found[0] if found else folder


def _open_archive(path: Path, chosen: Units | None, option: str) -> Frames:
    archive = read_archive(path)
    named, units = archive.units, chosen or archive.units or archive.usual
    if units is None:
        raise ValueError(
            f"{path} does not say in which units it is: give {option}; the MD17 files of 2017 are in kcal/mol."
        )
    if named is not None and not agree(named, units):
        raise ValueError(
            f"{path} says that it is in {named.name}, {option} says {units.name}: leave {option} out, or correct the "
            "e_unit and r_unit of the file."
        )
    remedy = f"give {option}" if named is None else "correct the e_unit and r_unit of the file"
    return Frames(path, len(archive.energies), lambda index: archive.structure(index, units), units, remedy)


def _open_ase(path: Path, chosen: Units | None, option: str) -> Frames:
    """ASE's formats are in eV and Å unless whoever wrote the file did otherwise."""
    source, units = open_source(path), chosen or EV
    return Frames(
        path, source.length, lambda index: _converted(source.read(index), index, units), units, f"give {option}"
    )


def _converted(structure: Structure, index: int, units: Units) -> Structure:
    return structure._replace(
        positions=units.length * structure.positions,
        cell=units.length * structure.cell,
        energy=None if structure.energy is None else units.energy * structure.energy,
        forces=None if structure.forces is None else units.forces * structure.forces,
        fid=index,
    )
