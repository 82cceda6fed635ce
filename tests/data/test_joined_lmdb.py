from __future__ import annotations

import pytest
from samples import write_lmdb

from dens_plugin.checks.dataset import require_distinct
from dens_plugin.data.joined_lmdb import JoinedLmdbs
from dens_plugin.testing import random_structure


@pytest.fixture
def folders(tmp_path):
    """Two folders, of two and of three structures."""
    return [
        write_lmdb(
            tmp_path / f"set{count}", [random_structure(count, seed=i, sid=10 * count + i) for i in range(count)]
        )
        for count in (2, 3)
    ]


def test_structures_follow_one_another(folders):
    dataset = JoinedLmdbs({"src": [str(folder) for folder in folders]})
    assert [dataset[index].sid for index in range(len(dataset))] == [20, 21, 30, 31, 32]
    assert dataset.get_metadata("natoms", range(5)).tolist() == [2, 2, 3, 3, 3]


def test_one_folder_is_a_data_set_too(folders):
    assert len(JoinedLmdbs({"src": str(folders[1])})) == 3


def test_no_part_is_in_two_splits(folders):
    train = {"format": "joined_lmdb", "src": list(map(str, folders))}
    with pytest.raises(ValueError, match=r"dataset\.train\.src and dataset\.val\.src are both"):
        require_distinct({"train": train, "val": {"format": "joined_lmdb", "src": str(folders[0])}})
