"""Several LMDBs, or folders of LMDBs, as one data set: fairchem's takes one path."""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING, Any

from fairchem.core.common.registry import registry
from fairchem.core.datasets.base_dataset import BaseDataset
from fairchem.core.datasets.lmdb_dataset import LmdbDataset

if TYPE_CHECKING:
    from torch_geometric.data import Data


@registry.register_dataset("joined_lmdb")
class JoinedLmdbs(BaseDataset):
    """fairchem's LMDB data sets, one after the other.

    Args:
        config: as fairchem's; ``src`` is a path or a list of paths.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._parts = [LmdbDataset({**config, "src": str(path)}) for path in self.paths]
        self._ends = list(itertools.accumulate(map(len, self._parts)))
        self.num_samples = self._ends[-1]

    def __getitem__(self, idx: int) -> Data:
        """The structure of a number, counted from 0 over all parts."""
        part = bisect.bisect(self._ends, idx)
        return self._parts[part][idx - (self._ends[part - 1] if part else 0)]
