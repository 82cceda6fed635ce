"""OC20 All+MD: LMDBs whose structures know from the log of their trajectory whether they are molecular dynamics.

DeNS leaves MD structures alone (Section B.1 of arXiv:2403.09549). Beside every LMDB the release has a text file with
one line per structure, in which the path of the trajectory names ``relaxations`` or ``md``.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fairchem.core.common.registry import registry
from fairchem.core.datasets.lmdb_dataset import LmdbDataset

from dens_plugin.data.lmdb_file import lmdb_files
from dens_plugin.fields import MD

if TYPE_CHECKING:
    from torch_geometric.data import Data


@registry.register_dataset("dens_lmdb")
class MDFlaggedLmdb(LmdbDataset):
    """fairchem's LMDB data set, one file or a folder of files, with a flag ``md`` on every structure.

    Logs are read when a structure of theirs is first asked for, so that a start does not wait for 170 million lines.

    Args:
        config: as fairchem's.

    Raises:
        FileNotFoundError: if there is not one log per LMDB.
    """

    _keys: Sequence[Any]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._keys = _ranges(self._keys)
        self._logs = [TrajectoryLog(path) for path in _log_files(self.path)]

    def __getitem__(self, idx: int) -> Data:
        """A structure, as fairchem's, with ``md``."""
        structure = super().__getitem__(idx)
        file, line = self._position(self.indices[idx])
        structure[MD] = self._logs[file].is_md(line)
        return structure

    def _position(self, index: int) -> tuple[int, int]:
        """Number of the file and of the structure in it."""
        if self.path.is_file():
            return 0, index
        ends = self._keylen_cumulative
        file = bisect.bisect(ends, index)
        return file, index - (ends[file - 1] if file else 0)


class TrajectoryLog:
    """What the lines of a log say, one bit a line: every worker of every rank keeps its own.

    Args:
        path: the text file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_md(self, line: int) -> bool:
        """Whether a line, counted from 0, names a trajectory of molecular dynamics.

        Raises:
            ValueError: if the log ends before that line.
        """
        flags, lines = self._flags
        if line >= lines:
            raise ValueError(
                f"'{self.path}' has {lines} lines and its LMDB more structures than that; "
                "without the log of every structure MD cannot be told from relaxations"
            )
        return bool(flags[line // 8] >> (7 - line % 8) & 1)

    @cached_property
    def _flags(self) -> tuple[np.ndarray, int]:
        """Eight lines a byte, and the number of lines."""
        with self.path.open("rb") as lines:
            flags = np.fromiter((b"md" in line and b"relaxations" not in line for line in lines), dtype=bool)
        return np.packbits(flags), len(flags)


def _ranges(keys: Sequence[Any]) -> range | list[range]:
    """fairchem's keys, a list of 0 to n - 1 for each file, without the 40 bytes that it spends on each structure."""
    if keys and isinstance(keys[0], list):
        return [range(len(part)) for part in keys]
    return range(len(keys))


def _log_files(path: Path) -> list[Path]:
    """The logs of an LMDB or of a folder of LMDBs: in their folder, the n-th text file belongs to the n-th LMDB."""
    folder = path.parent if path.is_file() else path
    files, logs = lmdb_files(folder), sorted(folder.glob("*.txt"))
    if len(files) != len(logs):
        raise FileNotFoundError(
            f"'{folder}' has {len(files)} LMDBs and {len(logs)} .txt logs, which must be as many to tell MD from "
            "relaxations; use `format: lmdb` for data without MD"
        )
    return [logs[files.index(path)]] if path.is_file() else logs
