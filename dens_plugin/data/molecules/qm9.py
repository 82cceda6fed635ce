"""QM9 as it is published and as others pack it: relaxed molecules with twelve targets, without forces.

| form | what it is |
|---|---|
| ``dsgdb9nsd.xyz.tar.bz2``, or a folder with its ``dsgdb9nsd_*.xyz`` | the authors' files: a line of properties, atoms with Mulliken charges, frequencies, SMILES, InChI; exponents as ``*^`` |
| a folder with ``gdb9.sdf`` and ``gdb9.sdf.csv``, or either file | MoleculeNet's, also the ``raw`` of PyG |
| a folder of PyG with ``raw/qm9_v3.pt`` or ``processed/data_v3.pt`` | tensors of PyG, in its units |

``energy`` is U0. References are the authors' energies of free atoms.
"""  # noqa: E501

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch_geometric.data  # noqa: F401  tells torch which of PyG's classes a file may hold
from ase.data import atomic_numbers

from dens_plugin.data.molecules.frames import Frames, molecule_frame
from dens_plugin.data.molecules.qm9_targets import ATOM_REFERENCES, ENERGY, EXCLUSIONS, TARGETS, UNIT
from dens_plugin.data.molecules.units import Units
from dens_plugin.data.structures import Structure

_AGAIN = "copy or download it again."
_XYZ = "dsgdb9nsd_*.xyz"
_SDF, _CSV = "gdb9.sdf", "gdb9.sdf.csv"
_PYG = ("raw/qm9_v3.pt", "qm9_v3.pt", "processed/data_v3.pt", "data_v3.pt")
_FIRST_TARGET = 5  # words of the authors' line of properties before mu: gdb, number, A, B, C
_UNREADABLE = (tarfile.TarError, EOFError, OSError)


class Molecule(NamedTuple):
    """A molecule of QM9.

    Attributes:
        number: Of the set, from 1.
        elements: Atomic numbers, shape (N,).
        positions: Å, shape (N, 3).
        targets: In our units, in the order of :data:`~dens_plugin.data.molecules.qm9_targets.TARGETS`, shape (12,).
        smiles: Of the graph that it was made from; its number where the file does not say.
    """

    number: int
    elements: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    smiles: str


def is_qm9(path: Path) -> bool:
    """Whether a file or folder is one of the forms of QM9."""
    if path.is_dir():
        return _sdf_folder(path) is not None or _pyg_file(path) is not None or next(path.glob(_XYZ), None) is not None
    return path.name in (_SDF, _CSV) or (".tar" in path.suffixes and "dsgdb9nsd" in path.name) or _is_pyg(path)


def open_qm9(path: Path, *, energy: str | None = None) -> Frames:
    """Read QM9, all of it.

    Args:
        path: What :func:`is_qm9` recognises.
        energy: The target that is ``energy``; U0 by default.

    Raises:
        FileNotFoundError: If one of its files is missing.
        ValueError: If it cannot be read, or there is no such target.
    """
    energy = energy or ENERGY
    if energy not in ATOM_REFERENCES:
        raise ValueError(f"--energy-key of QM9 is one of {', '.join(ATOM_REFERENCES)}, got '{energy}'.")
    molecules = list(_molecules(path))
    if not molecules:
        raise ValueError(f"{path} holds no molecules: {_AGAIN}")
    names = list(TARGETS)

    def read(index: int) -> Structure:
        molecule = molecules[index]
        properties = dict(zip(names, molecule.targets.tolist(), strict=True))
        return molecule_frame(
            molecule.elements,
            molecule.positions,
            energy=properties[energy],
            forces=None,
            fid=index,
            molecule=molecule.smiles,
            properties=properties,
        )

    return Frames(
        path,
        len(molecules),
        read,
        Units(1.0, 1.0, 1.0, UNIT),
        "use the published files",
        several=True,
        forces=False,
        references={"energy": ATOM_REFERENCES[energy], **ATOM_REFERENCES},
        targets={name: target.unit for name, target in TARGETS.items()},
        numbers=np.array([molecule.number for molecule in molecules]),
        notes=(f"{path}: energy is {energy}; molecules are relaxed, there are no forces",),
    )


def exclusions_beside(path: Path) -> Path | None:
    """The authors' list of molecules that failed their check, where it lies beside QM9."""
    folders = (path, path / "raw", path.parent, path.parent / "raw") if path.is_dir() else (path.parent,)
    return next((folder / EXCLUSIONS for folder in folders if (folder / EXCLUSIONS).is_file()), None)


def parse_xyz(text: str, where: str) -> Molecule:
    """Read one of the authors' files.

    Args:
        text: Its content.
        where: Its name, for messages.

    Raises:
        ValueError: If it is not whole, or something in it is no number or element.
    """
    lines = text.replace("*^", "e").splitlines()
    if not lines or not lines[0].strip().isdecimal() or len(lines) < int(lines[0]) + 4:
        raise ValueError(f"{where} is not a whole file of QM9 (number of atoms, properties, atoms, ...): {_AGAIN}")
    natoms = int(lines[0])
    words = lines[1].split()
    if len(words) != _FIRST_TARGET + len(TARGETS):
        raise ValueError(
            f"{where}, line 2 must have `gdb`, a number and {_FIRST_TARGET - 2 + len(TARGETS)} properties, got "
            f"{len(words)} words: {_AGAIN}"
        )
    rows = [_atom(line, f"{where}, line {number}") for number, line in enumerate(lines[2 : natoms + 2], start=3)]
    values = [_number(word, f"{where}, line 2") for word in words[_FIRST_TARGET:]]
    smiles = lines[natoms + 3].split()
    return Molecule(
        number=int(_number(words[1], f"{where}, line 2")),
        elements=np.array([number for number, _ in rows]),
        positions=np.array([place for _, place in rows]),
        targets=np.array(values) * _factors(),
        smiles=smiles[0] if smiles else f"gdb_{words[1]}",
    )


def _atom(line: str, where: str) -> tuple[int, list[float]]:
    words = line.split()
    if len(words) != 5 or not atomic_numbers.get(words[0]):
        raise ValueError(f"{where} must be an element, x, y, z and a Mulliken charge, got '{line.strip()}': {_AGAIN}")
    return atomic_numbers[words[0]], [_number(word, where) for word in words[1:4]]


def _number(word: str, where: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{where} has '{word}' where a number belongs: {_AGAIN}") from None


def _factors() -> np.ndarray:
    return np.array([target.factor for target in TARGETS.values()])


def _molecules(path: Path) -> Iterator[Molecule]:
    folder = _sdf_folder(path if path.is_dir() else path.parent)
    if path.is_dir() and next(path.glob(_XYZ), None) is not None:
        for file in sorted(path.glob(_XYZ)):
            yield parse_xyz(file.read_text(), str(file))
    elif path.is_file() and ".tar" in path.suffixes:
        yield from sorted(_archive(path), key=lambda molecule: molecule.number)
    elif path.name in (_SDF, _CSV) or (path.is_dir() and folder is not None):
        if folder is None:
            raise FileNotFoundError(f"{path} needs {_SDF} and {_CSV} beside each other: {_AGAIN}")
        yield from _sdf(folder)
    else:
        found = path if path.is_file() else _pyg_file(path)
        yield from [] if found is None else _pyg(found)


def _archive(path: Path) -> Iterator[Molecule]:
    try:
        with tarfile.open(path, mode="r|*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(".xyz") else None
                if content is not None:
                    yield parse_xyz(content.read().decode(), f"{path}, {Path(member.name).name}")
    except _UNREADABLE as error:
        raise ValueError(f"{path} is truncated or no tar archive ({error}): {_AGAIN}") from error


def _sdf_folder(folder: Path) -> Path | None:
    return next((place for place in (folder, folder / "raw") if all((place / n).is_file() for n in (_SDF, _CSV))), None)


def _sdf(folder: Path) -> Iterator[Molecule]:
    with open(folder / _CSV, newline="") as table, open(folder / _SDF) as blocks:
        rows = csv.DictReader(table)
        needed = ["mol_id", *(target.column for target in TARGETS.values())]
        lacking = [column for column in needed if column not in (rows.fieldnames or ())]
        if lacking:
            raise ValueError(f"{folder / _CSV} has no column {', '.join(lacking)}: {_AGAIN}")
        count = 0
        for row, block in zip(rows, _blocks(blocks), strict=False):
            count += 1
            yield _sdf_molecule(row, block, folder)
        if next(rows, None) is not None or next(_blocks(blocks), None) is not None:
            raise ValueError(f"{folder}: {_SDF} and {_CSV} do not have the same molecules, after {count:,}: {_AGAIN}")


def _blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        if line.startswith("$$$$"):
            yield block
            block = []
        else:
            block.append(line.rstrip("\n"))
    if any(line.strip() for line in block):
        yield block


def _sdf_molecule(row: dict[str, str], block: Sequence[str], folder: Path) -> Molecule:
    name = row["mol_id"]
    where = f"{folder / _SDF}, {name}"
    if not block or block[0].strip() != name:
        raise ValueError(f"{where} is '{block[0].strip() if block else ''}' in the SDF file, which has another order.")
    natoms = int(_number(block[3][:3], where)) if len(block) > 3 else -1
    if not 0 < natoms <= len(block) - 4:
        raise ValueError(f"{where} is not a whole molecule: {_AGAIN}")
    words = [line.split() for line in block[4 : natoms + 4]]
    foreign = [word[3] if len(word) > 3 else "" for word in words if len(word) < 4 or not atomic_numbers.get(word[3])]
    if foreign:
        raise ValueError(f"{where} has '{foreign[0]}' where an element belongs: {_AGAIN}")
    values = [_number(row[t.column], f"{folder / _CSV}, {name}") for t in TARGETS.values()]
    return Molecule(
        number=int(_number(name.rpartition("_")[2], where)),
        elements=np.array([atomic_numbers[word[3]] for word in words]),
        positions=np.array([[_number(x, where) for x in word[:3]] for word in words]),
        targets=np.array(values) * _factors(),
        smiles=name,
    )


def _is_pyg(path: Path) -> bool:
    return path.name in {Path(name).name for name in _PYG}


def _pyg_file(folder: Path) -> Path | None:
    return next((folder / name for name in _PYG if (folder / name).is_file()), None)


def _pyg(path: Path) -> Iterator[Molecule]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged or foreign file raises whatever its bytes ask for
        raise ValueError(
            f"{path} cannot be read as tensors of PyG ({type(error).__name__}): give the raw folder with {_SDF}."
        ) from error
    records = content if isinstance(content, list) else _sliced(content, path)
    for place, record in enumerate(records):
        y = record["y"].double().numpy().reshape(-1) if "y" in record else np.zeros(0)
        if len(y) < len(TARGETS) or "z" not in record or "pos" not in record:
            raise ValueError(f"{path}, molecule {place} has no z, pos and y with {len(TARGETS)} targets: {_AGAIN}")
        yield Molecule(
            number=int(record.get("idx", place)) + 1,
            elements=record["z"].numpy().astype(int),
            positions=record["pos"].double().numpy(),
            targets=y[: len(TARGETS)],
            smiles=str(record.get("smiles", record.get("name", f"gdb_{place + 1}"))),
        )


def _sliced(content: tuple, path: Path) -> Iterator[dict]:
    """The molecules of a processed file, which has all atoms behind each other and where each molecule begins."""
    if not isinstance(content, tuple) or len(content) < 2 or not isinstance(content[1], dict):
        raise ValueError(f"{path} is no processed QM9 of PyG: give the raw folder with {_SDF} instead.")
    data, slices = content[:2]
    data = data if isinstance(data, dict) else data.to_dict()
    keys = [key for key in ("z", "pos", "y", "idx", "smiles", "name") if key in data and key in slices]
    for place in range(len(slices["z"]) - 1):
        yield {key: _piece(data[key][int(slices[key][place]) : int(slices[key][place + 1])], key) for key in keys}


def _piece(value: torch.Tensor | list, key: str) -> object:
    return value[0] if key in ("idx", "smiles", "name") else value
