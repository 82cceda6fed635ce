"""Opening any data set that fairchem trains on, as a sequence of :class:`~dens_plugin.data.structures.Structure`."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError
from fairchem.core.datasets import AseDBDataset, LmdbDataset
from fairchem.core.datasets.oc22_lmdb_dataset import OC22LmdbDataset

from dens_plugin.data.layout import completed, departures
from dens_plugin.data.lmdb_file import require_whole_lmdb
from dens_plugin.data.places import place_of
from dens_plugin.data.release import is_release, read_frames
from dens_plugin.data.structures import OPTIONAL_NAMES, USUAL, Keys, Structure, from_atoms, from_data

_OLD_NAMES = ("single_point_lmdb", "trajectory_lmdb")  # fairchem still takes them for lmdb
FORMATS = ("auto", "lmdb", "oc22_lmdb", "ase_db", "ase_read", "ase_read_multi", *_OLD_NAMES)

_TRIED = 100  # records, to find one that can be read
_OF_MOLECULES = (".npz", ".h5", ".hdf5", ".sdf", ".bz2")
_DATABASES = (".db", ".aselmdb")
_GEOMETRY = ("numbers", "positions", "tags", "move_mask", "sid", "fid")


class Source(NamedTuple):
    """An open data set.

    Attributes:
        path: Where it lies.
        format: fairchem's name for its kind, what to write at ``dataset.train.format``.
        length: Number of structures.
        read: The structure at an index; ValueError if the record cannot be read.
        metadata: Number of atoms per structure from ``metadata.npz``; None if there is none.
        names: Of the values and columns of the first structure, for messages; empty where they have fixed names.
    """

    path: Path
    format: str
    length: int
    read: Callable[[int], Structure]
    metadata: Sequence[int] | None
    names: Sequence[str] = ()


def open_source(
    path: Path, *, format: str = "auto", config: Mapping[str, Any] | None = None, keys: Keys = USUAL
) -> Source:
    """Open a data set.

    Args:
        path: A file or a folder.
        format: One of :data:`FORMATS`.
        config: More of fairchem's ``dataset`` options, e.g. ``pattern`` or ``key_mapping``.
        keys: What labels are called.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If what is there cannot be read.
    """
    if format not in FORMATS:
        raise ValueError(f"Unknown format {format!r}: use one of {', '.join(FORMATS)}.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a file or a folder with a data set.")
    _refuse_release(path)
    config = {**(config or {}), "src": str(path)}
    kind = _guess(path) if format == "auto" else format
    return _OPENERS[kind](path, config, keys)


def _refuse_release(path: Path) -> None:
    if not path.is_dir():
        if path.suffix in _OF_MOLECULES:
            raise ValueError(
                f"{path} is a file of molecules, which fairchem cannot train on: make LMDBs of it with "
                f"`dens data molecules {path} OUT`, which checks it as well, and check OUT."
            )
        return
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    for folder in folders:
        if is_release(folder):
            raise ValueError(
                f"{folder} holds the raw S2EF release (N.extxyz with N.txt), which fairchem cannot train on: "
                f"convert it with `dens data oc20 {folder} OUT` and check OUT."
            )


def _guess(path: Path) -> str:
    if path.is_file():
        return _guess_file(path)
    suffixes = {file.suffix for file in path.iterdir() if file.is_file()}
    if ".lmdb" in suffixes:
        return "lmdb"
    if suffixes & set(_DATABASES):
        return "ase_db"
    return "ase_read_multi"


def _guess_file(path: Path) -> str:
    if path.suffix == ".lmdb":
        return "lmdb"
    # in a folder a *.json need not be a database
    return "ase_db" if path.suffix in (*_DATABASES, ".json") else "ase_read_multi"


def _open_lmdb(path: Path, config: dict, keys: Keys, *, dataset_class: type = LmdbDataset) -> Source:
    require_whole_lmdb(path)
    dataset = dataset_class(config)
    if len(dataset) == 0:
        raise ValueError(f"{path} holds no structures: convert the data anew.")
    # OC22's LMDB files look like any other until one opens a record
    name = "oc22_lmdb" if _is_oc22(dataset, path) else "lmdb"
    return Source(
        path,
        name,
        len(dataset),
        lambda index: _structure(dataset, index, path, keys),
        _metadata(path),
    )


def _is_oc22(dataset: LmdbDataset, path: Path) -> bool:
    """Whether the first record that can be read is one of OC22."""
    for index in range(min(len(dataset), _TRIED)):
        with contextlib.suppress(ValueError):
            return "oc22" in _record(dataset, index, path)
    return False


def _open_oc22(path: Path, config: dict, keys: Keys) -> Source:
    return _open_lmdb(path, config, keys, dataset_class=OC22LmdbDataset)


def _open_database(path: Path, config: dict, keys: Keys) -> Source:
    if path.suffix == ".aselmdb" or (path.is_dir() and any(path.glob("*.aselmdb"))):
        require_whole_lmdb(path)
    try:
        dataset = AseDBDataset(config)
    except Exception as error:  # each kind of database raises its own
        raise ValueError(f"{path} cannot be read as an ASE database: {error}") from error
    # the structure itself: fairchem's conversion raises where a label is missing
    return Source(
        path,
        "ase_db",
        len(dataset),
        lambda index: _numbered(from_atoms(_atoms_of_row(dataset, index), keys), index),
        _metadata(path),
        names_in(_atoms_of_row(dataset, 0)) if len(dataset) else (),
    )


def _numbered(structure: Structure, index: int) -> Structure:
    """A row with an identifier, as fairchem gives one to those that have none."""
    return structure._replace(sid=_or(structure.sid, index))


def _atoms_of_row(dataset: AseDBDataset, index: int) -> Atoms:
    """A row with all that was stored in it; fairchem leaves out its key-value pairs."""
    number = bisect.bisect(dataset._idlen_cumulative, index)
    start = dataset._idlen_cumulative[number - 1] if number else 0
    row = dataset.dbs[number]._get_row(dataset.db_ids[number][index - start])
    atoms = row.toatoms()
    atoms.info.update(row.key_value_pairs)
    if isinstance(row.data, Mapping):
        atoms.info.update(row.data)
    return atoms


def _open_files(path: Path, config: dict, keys: Keys, *, wanted: slice, name: str) -> Source:
    """Files that ASE reads, each of them once; fairchem would read a file anew for each of its structures."""
    structures: list[Structure] = []
    names: tuple[str, ...] = ()
    for file in _matching_files(path, config.get("pattern", "*")):
        frames = _read_file(file)
        names = names or (names_in(frames[0]) if frames else ())
        structures += _structures(file, frames, keys)[wanted]
    if not structures:
        raise ValueError(f"{path} holds no structures: give a folder with LMDB files, an ASE database or files of ASE.")
    return Source(path, name, len(structures), structures.__getitem__, None, names)


def _open_last_structures(path: Path, config: dict, keys: Keys) -> Source:
    return _open_files(path, config, keys, wanted=slice(-1, None), name="ase_read")


def _open_all_structures(path: Path, config: dict, keys: Keys) -> Source:
    return _open_files(path, config, keys, wanted=slice(None), name="ase_read_multi")


_OPENERS: dict[str, Callable[[Path, dict, Keys], Source]] = {
    "lmdb": _open_lmdb,
    **dict.fromkeys(_OLD_NAMES, _open_lmdb),
    "oc22_lmdb": _open_oc22,
    "ase_db": _open_database,
    "ase_read": _open_last_structures,
    "ase_read_multi": _open_all_structures,
}


def _structure(dataset: LmdbDataset, index: int, path: Path, keys: Keys) -> Structure:
    record = _record(dataset, index, path)
    try:
        return from_data(completed(record), keys)._replace(
            departures=departures(record), absent=tuple(name for name in OPTIONAL_NAMES if name not in record)
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{place_of(dataset, index)}: {error}") from error


def _record(dataset: LmdbDataset, index: int, path: Path) -> Any:
    try:
        return dataset[index]
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise ValueError(
            f"{place_of(dataset, index)} cannot be read ({type(error).__name__}: {error}). "
            "The file is incomplete or was written by another version: copy it again, or convert the data anew."
        ) from error


def _metadata(path: Path) -> Sequence[int] | None:
    """Read as fairchem does, for a file from its folder, but without its demand that the lengths agree."""
    file = (path if path.is_dir() else path.parent) / "metadata.npz"
    if not file.is_file():
        return None
    with np.load(file) as metadata:
        return metadata["natoms"].tolist() if "natoms" in metadata else None


def _matching_files(path: Path, pattern: str) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.glob(pattern) if file.is_file())


def names_in(atoms: Atoms) -> tuple[str, ...]:
    """The values and columns of a structure that may be labels, by name."""
    results = {} if atoms.calc is None else atoms.calc.results
    return tuple(name for name in {**results, **atoms.info, **atoms.arrays} if name not in _GEOMETRY)


def _read_file(file: Path) -> list[Atoms]:
    # ASE jumps back and forth in the file, which takes minutes in a compressed one
    return list(read_frames(file)) if ".extxyz" in file.suffixes else _frames_of_ase(file)


def _structures(file: Path, frames: Sequence[Atoms], keys: Keys) -> list[Structure]:
    structures = (from_atoms(atoms, keys) for atoms in frames)
    return [
        structure._replace(sid=_or(structure.sid, str(file)), fid=_or(structure.fid, number))
        for number, structure in enumerate(structures)
    ]


def _frames_of_ase(file: Path) -> list[Atoms]:
    try:
        return ase.io.read(file, index=":")
    except (UnknownFileTypeError, StopIteration, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{file} cannot be read by ASE ({type(error).__name__}: {error}): give the data set's own file or folder."
        ) from error


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
