"""Reading ``.npz`` files that may be broken, and writing large ones array by array, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from dens_plugin.data.lmdb_file import PART

_BLOCK = 1 << 20  # bytes
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError)


class NpzReader:
    """The arrays of a file, each read when it is asked for.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is no ``.npz`` file or is cut short.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file '{path}'; give an .npz file")
        self.path = path
        try:
            self._file = np.load(path, allow_pickle=False)
        except _BROKEN as error:
            raise ValueError(f"{self._broken()} ({error})") from error
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise ValueError(f"'{path}' holds a single array; an .npz file of several is needed")

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._file.files)

    def read(self, key: str) -> np.ndarray:
        """An array.

        Raises:
            ValueError: if there is none of this name, it is cut short, or holds Python objects.
        """
        if key not in self._file.files:
            raise ValueError(f"'{self.path}' has no array '{key}', only {', '.join(self.keys) or 'none'}")
        try:
            return self._file[key]
        except _BROKEN as error:
            if "Object arrays" in str(error):
                raise ValueError(
                    f"'{key}' in '{self.path}' holds Python objects, which leaderboards refuse: write one array of "
                    "numbers (np.concatenate for forces)"
                ) from error
            raise ValueError(f"{self._broken()} (array '{key}': {error})") from error

    def _broken(self) -> str:
        return f"'{self.path}' is no whole .npz file: copy it again or write it anew"


class NpzWriter:
    """Writes an ``.npz`` file that gets its name when the ``with`` block ends well, and leaves nothing when not.

    One array is in memory at a time, which :func:`numpy.savez` does not offer. Floats are stored as they are: deflate
    takes minutes for a few percent of them.

    Args:
        path: of the file; replaced if it exists.

    Raises:
        OSError: if the disk is full or the folder cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + PART)

    def __enter__(self) -> NpzWriter:
        with self._explained():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "wb")
        self._zip = zipfile.ZipFile(self._file, "w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._explained():
                    self._finish()
        finally:
            with contextlib.suppress(OSError):  # of a full disk, which was reported already
                self._zip.close()
            with contextlib.suppress(OSError):
                self._file.close()
            self._part.unlink(missing_ok=True)

    def write(self, key: str, array: np.ndarray) -> None:
        """Add an array."""
        entry = zipfile.ZipInfo(f"{key}.npy")  # with a fixed date: the same arrays make the same file
        entry.compress_type = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
        with self._explained(), self._zip.open(entry, "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def _finish(self) -> None:
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"'{self._path}' cannot be written ({error.strerror or error}): make room or give another OUT; "
                "nothing was left behind"
            ) from error


def sha256_of_file(path: Path) -> str:
    """The digest that ``sha256sum`` prints."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_array(array: np.ndarray) -> str:
    """Digest of an array's values in C order, whatever file it is in."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()
