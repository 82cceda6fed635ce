"""Opening a file of molecules or crystals, whatever its kind, as frames in eV and Å."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dens_plugin.data.molecules import hdf5, iso17
from dens_plugin.data.molecules.archives import read_archive
from dens_plugin.data.molecules.frames import Frames
from dens_plugin.data.molecules.plain_xyz import is_plain_xyz, open_plain_xyz
from dens_plugin.data.molecules.qm9 import is_qm9, open_qm9
from dens_plugin.data.molecules.qm9_targets import ATOM_REFERENCES, ENERGY, TARGETS
from dens_plugin.data.molecules.shipped import PREFIX, shipped_molecule
from dens_plugin.data.molecules.units import EV, Units, agree, from_choice
from dens_plugin.data.sources import open_source
from dens_plugin.data.structures import USUAL, Keys, Structure

_NUMBER = "qm9_index"  # of a molecule of QM9, from 1, in extended XYZ
_RAW = "raw"  # where PyG's MD17 keeps its downloads, below its root
_NO_MOLECULES = ("metadata.npz", "split.npz")  # nor normalizer_*.npz, but beside LMDBs


def open_frames(
    path: Path, *, units: str | None = None, option: str = "--units", keys: Keys = USUAL, forces: bool = True
) -> Frames:
    """Open a file of structures with energies and, if it is to have them, forces.

    Args:
        path: An npz file of MD17, revised MD17, sGDML or MD22, extended XYZ (also .xz), plain XYZ with an energy in the
            comment line, QM9 in any form, HDF5 of ANI-1, ANI-1x or SPICE, the folder of ISO17, an ASE database or
            another file of ASE, an LMDB; a folder with one npz file, itself or in ``raw`` below it, as PyG's MD17 has;
            or ``shipped:NAME``, a molecule that comes with the package.
        units: One of :data:`~dens_plugin.data.molecules.units.CHOICES`; None for what the file, or its kind, says.
        option: What the user calls ``units``, for the messages.
        keys: What the file calls its labels.
        forces: Whether they are wanted; without them a file need not have any.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ImportError: If a file of its kind needs what is not installed.
        ValueError: If it cannot be read, or does not say its units, or itself says others than ``units``.
    """
    if str(path).startswith(PREFIX):
        path = shipped_molecule(str(path).removeprefix(PREFIX))
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a file of structures, or a folder with one.")
    chosen = None if units is None else from_choice(units, option)
    frames = _open(path, chosen, option, keys, forces=forces)
    if forces or not frames.forces:
        return frames
    return frames._replace(forces=False, read=lambda index: frames.read(index)._replace(forces=None))


def _open(path: Path, chosen: Units | None, option: str, keys: Keys, *, forces: bool) -> Frames:
    if is_qm9(path):
        return open_qm9(path, energy=keys.energy)
    if iso17.is_iso17(path):
        return _open_iso17(path, chosen, option, keys)
    path = _only_archive(path) if path.is_dir() else path
    if path.suffix in hdf5.SUFFIXES:
        return hdf5.open_hdf5(path, keys, chosen, option=option, forces=forces)
    if is_plain_xyz(path):
        return open_plain_xyz(path, chosen, option)
    if path.suffix == ".npz":
        return _open_archive(path, chosen, option, keys, forces=forces)
    return _open_ase(path, chosen, option, keys)


def _only_archive(folder: Path) -> Path:
    """The npz or HDF5 file of a folder or of ``raw`` below it; the folder itself if it holds none."""
    files = (*folder.iterdir(), *(folder / _RAW).rglob("*"))
    found = sorted(
        file
        for file in files
        if file.suffix in (".npz", *hdf5.SUFFIXES)
        and file.name not in _NO_MOLECULES
        and not file.name.startswith("normalizer_")
    )
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise ValueError(f"{folder} holds several molecules: give one of {names}.")
    return found[0] if found else folder


def _open_archive(path: Path, chosen: Units | None, option: str, keys: Keys, *, forces: bool) -> Frames:
    archive = read_archive(path, keys, forces=forces)
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
    return Frames(
        path,
        len(archive.energies),
        lambda index: archive.structure(index, units),
        units,
        f"give {option}" if named is None else "correct the e_unit and r_unit of the file",
        parts=archive.parts,
    )


def _open_iso17(folder: Path, chosen: Units | None, option: str, keys: Keys) -> Frames:
    frames = _open_ase(folder / iso17.REFERENCE, chosen, option, keys)
    parts = iso17.published_parts(folder)
    test = folder / iso17.TEST
    notes = [f"{folder}: {iso17.REFERENCE}" + (" with the published split" if parts else "")]
    return frames._replace(parts=parts, test=test if test.is_file() else None, notes=notes)


def _open_ase(path: Path, chosen: Units | None, option: str, keys: Keys) -> Frames:
    """ASE's formats are in eV and Å unless whoever wrote the file did otherwise."""
    source, units = open_source(path, keys=keys), chosen or EV
    if set(TARGETS) <= set(source.names):
        return _open_qm9_of_ase(path, keys)
    renamed = iso17.keys_of(source.names, keys)
    if renamed != keys:
        source = open_source(path, keys=renamed)
    return Frames(
        path,
        source.length,
        lambda index: _converted(source.read(index), index, units),
        units,
        f"give {option}",
        names=source.names,
        targets=dict.fromkeys(keys.targets, ""),
    )


def _open_qm9_of_ase(path: Path, keys: Keys) -> Frames:
    """QM9 written by ASE: its targets, in our units, among the values of the comment line."""
    energy = keys.energy or ENERGY
    source = open_source(path, keys=keys._replace(energy=energy, targets=(*TARGETS, _NUMBER)))
    numbers = [int(source.read(index).properties.get(_NUMBER, index + 1)) for index in range(source.length)]
    return Frames(
        path,
        source.length,
        lambda index: _without_number(_converted(source.read(index), index, EV)),
        EV,
        "write its targets in eV, D, a0^3, a0^2 and cal/mol/K",
        several=True,
        forces=False,
        references={"energy": ATOM_REFERENCES.get(energy, {}), **ATOM_REFERENCES},
        targets={name: target.unit for name, target in TARGETS.items()},
        numbers=np.array(numbers),
        names=source.names,
        notes=(f"{path}: QM9, energy is {energy}; molecules are relaxed, there are no forces",),
    )


def _without_number(structure: Structure) -> Structure:
    return structure._replace(properties={k: v for k, v in structure.properties.items() if k != _NUMBER})


def _converted(structure: Structure, index: int, units: Units) -> Structure:
    return structure._replace(
        positions=units.length * structure.positions,
        cell=units.length * structure.cell,
        energy=None if structure.energy is None else units.energy * structure.energy,
        forces=None if structure.forces is None else units.forces * structure.forces,
        fid=index,
    )
