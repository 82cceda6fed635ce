"""Where a structure of a data set lies, in words."""

from __future__ import annotations

import bisect
from typing import Any

from fairchem.core.datasets import LmdbDataset
from torch.utils.data import Subset

from dens_plugin.data.lmdb_file import lmdb_files


def place_of(dataset: Any, index: int) -> str:
    """The file of a structure and its index in it, however the data set was chosen from."""
    while isinstance(dataset, Subset):
        index, dataset = int(dataset.indices[index]), dataset.dataset
    if isinstance(dataset, LmdbDataset) and not dataset.path.is_file():
        ends = dataset._keylen_cumulative
        number = bisect.bisect(ends, index)
        return f"'{lmdb_files(dataset.path)[number]}', structure {index - (ends[number - 1] if number else 0)}"
    return f"'{dataset.config['src']}', structure {index}"
