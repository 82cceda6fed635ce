"""LMDB files as fairchem reads them: one structure a key "0" ... "n-1", and their number under "length".

Files are written under a temporary name and renamed when they are whole. LMDB reads through a memory map, so touching a
page that a truncated file no longer has ends the process with SIGBUS and no message: :func:`require_whole_lmdb`
compares the size of the file with what its header promises before anybody reads a record.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
from numpy.typing import ArrayLike

PART = ".part"

_FIRST_MAP_SIZE = 1 << 26  # bytes; grows by doubling, the file itself is only as large as its data
_COMMIT_BYTES = 1 << 25  # a transaction a record would sync to disk for each of them
_SUFFIXES = (".lmdb", ".aselmdb")


def lmdb_files(path: str | os.PathLike) -> list[Path]:
    """The LMDB files of a data set, in fairchem's order.

    Args:
        path: An LMDB file, or a folder that holds some.

    Returns:
        The file itself, or the folder's LMDB files sorted by name.

    Raises:
        FileNotFoundError: If there is no such path or no LMDB file in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: give an LMDB file or a folder that holds *.lmdb files.")
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(
            f"{path} holds no *.lmdb file: give the folder that the conversion wrote (OUT of `dens data`)."
        )
    return files


def require_whole_lmdb(path: str | os.PathLike) -> None:
    """Check that no LMDB file of a data set is truncated or says a wrong number of records, without reading one.

    Args:
        path: An LMDB file, or a folder that holds some.

    Raises:
        FileNotFoundError: If there is no such path or no LMDB file in it.
        ValueError: If a file is no LMDB, is smaller than its header promises, or holds another number of records than
            it says, of which fairchem would ignore the others.
    """
    for file in lmdb_files(path):
        _require_whole_file(file)


def write_metadata(folder: Path, natoms: ArrayLike) -> None:
    """Write ``metadata.npz``, from which fairchem balances batches by their number of atoms.

    Args:
        folder: Folder of the LMDB files.
        natoms: Number of atoms per structure, in data set order: files by name, then index, shape (B,).
    """
    part = folder / f"metadata.npz{PART}"
    with open(part, "wb") as file:
        np.savez(file, natoms=np.asarray(natoms, dtype=np.int64))
    part.replace(folder / "metadata.npz")


class LmdbWriter:
    """Writes one LMDB file; it gets its name when the ``with`` block ends well, and is removed when it does not.

    Args:
        path: The file to make; replaced if it exists.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = Path(path)
        self._part = self._path.with_name(self._path.name + PART)
        self._waiting: list[tuple[bytes, bytes]] = []
        self._waiting_bytes = 0
        self._length = 0

    def __enter__(self) -> LmdbWriter:
        self._part.unlink(missing_ok=True)
        # meminit stays on: else what a page does not use goes to disk with whatever was in memory before
        self._env = lmdb.open(str(self._part), subdir=False, lock=False, map_size=_FIRST_MAP_SIZE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        try:
            if kind is None:
                self._finish()  # may fail as well, on a full disk
                whole = True
        finally:
            self._env.close()
            if whole:
                self._part.replace(self._path)
            else:
                self._part.unlink(missing_ok=True)

    def append(self, record: Any) -> None:
        """Add one structure, a picklable object or its pickle as bytes, under the next index."""
        value = record if isinstance(record, bytes) else pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
        self._waiting.append((str(self._length).encode("ascii"), value))
        self._waiting_bytes += len(value)
        self._length += 1
        if self._waiting_bytes >= _COMMIT_BYTES:
            self._commit()

    def _finish(self) -> None:
        self._waiting.append((b"length", pickle.dumps(self._length, protocol=pickle.HIGHEST_PROTOCOL)))
        self._commit()
        self._env.sync(True)

    def _commit(self) -> None:
        while not self._try_commit():
            self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._waiting, self._waiting_bytes = [], 0

    def _try_commit(self) -> bool:
        try:
            with self._env.begin(write=True) as transaction:
                for key, value in self._waiting:
                    transaction.put(key, value)
        except lmdb.MapFullError:
            return False
        return True


def _require_whole_file(file: Path) -> None:
    size = file.stat().st_size
    promised = _promised_size(file)
    if size < promised:
        raise ValueError(
            f"{file} is truncated: it has {size} bytes, its header promises {promised}. "
            "Copy it again from its source, or delete it and convert the data anew."
        )
    said, held = _lengths(file)
    if said != held:
        raise ValueError(
            f"{file} says that it has {said} structures (its key `length`) and holds {held}: "
            + ("the others would be ignored. " if said < held else "some are missing. ")
            + "Correct `length`, or convert the data anew."
        )


def _lengths(file: Path) -> tuple[int, int]:
    """How many structures a file says that it has, and how many it holds; the same for one that does not say."""
    if file.suffix != ".lmdb":
        return 0, 0  # ASE's have other keys
    try:
        env = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error:
        return 0, 0  # already open, and looked at by who opened it
    try:
        with env, env.begin() as transaction:
            value = transaction.get(b"length")
            if value is None:
                return 0, 0
            said, held = int(pickle.loads(value)), transaction.stat()["entries"] - 1
            if said != held:  # perhaps there are further keys that are no structures
                held = sum(key.isdigit() for key in transaction.cursor().iternext(keys=True, values=False))
            return said, held
    except Exception as error:  # a damaged page or pickle raises whatever its bytes happen to ask for
        raise ValueError(
            f"{file}: its number of structures (the key `length`) cannot be read ({type(error).__name__}: {error}). "
            "Copy it again from its source, or delete it and convert the data anew."
        ) from error


def _promised_size(file: Path) -> int:
    """Bytes up to the end of the last page in use, from the header alone."""
    try:
        env = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        if "already open" in str(error):
            return 0  # LMDB opens a file once a process: whoever did so before us had to check it
        raise ValueError(
            f"{file} is not a readable LMDB file ({error}). "
            "Copy it again from its source, or delete it and convert the data anew."
        ) from error
    with env:
        return (env.info()["last_pgno"] + 1) * env.stat()["psize"]
