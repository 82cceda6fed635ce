from __future__ import annotations

import pytest
from fairchem.core.datasets import data_list_collater
from samples import write_lmdb

from dens_plugin.data.md_lmdb import MDFlaggedLmdb, TrajectoryLog
from dens_plugin.fields import corruption_of
from dens_plugin.objectives.dens import DeNS
from dens_plugin.testing import EPOCH, random_structure

LINES = ["a/relaxations/random1,frame0", "b/md/random2,frame0", "c/relaxations/md/random3,frame1", "random4,frame0"]
IS_MD = [False, True, False, False]


@pytest.fixture
def folder(tmp_path):
    """Two LMDBs of four structures with their logs, of which the second's has no last line end."""
    for number, lines in enumerate((LINES, LINES[::-1])):
        part = write_lmdb(tmp_path / f"part{number}", [random_structure(5, seed=i, sid=i) for i in range(4)])
        (part / "data.0000.lmdb").rename(tmp_path / f"data.000{number}.lmdb")
        (tmp_path / f"data_log.000{number}.txt").write_text("\n".join(lines) + ("\n" if number == 0 else ""))
    return tmp_path


def test_flags_of_a_folder(folder):
    dataset = MDFlaggedLmdb({"src": str(folder)})
    assert [dataset[index].md for index in range(8)] == IS_MD + IS_MD[::-1]


def test_flags_of_one_file(folder):
    dataset = MDFlaggedLmdb({"src": str(folder / "data.0001.lmdb")})
    assert [dataset[index].md for index in range(4)] == IS_MD[::-1]


def test_flagged_structures_are_never_corrupted(folder):
    dataset = MDFlaggedLmdb({"src": str(folder)})
    batch = data_list_collater([dataset[index] for index in range(4)], otf_graph=True)
    mask = corruption_of(DeNS(prob=1.0, corrupt_ratio=None).prepare(batch, EPOCH)).mask
    assert [bool(part.any()) for part in mask.split(5)] == [not md for md in IS_MD]


def test_missing_log(folder):
    (folder / "data_log.0001.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 LMDBs and 1 .txt logs.*format: lmdb"):
        MDFlaggedLmdb({"src": str(folder)})


def test_short_log(folder):
    (folder / "data_log.0000.txt").write_text(LINES[0] + "\n")
    with pytest.raises(ValueError, match=r"data_log.0000.txt' has 1 lines"):
        MDFlaggedLmdb({"src": str(folder)})[1]


def test_log_of_a_hundred_thousand_lines(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(
        "".join(f"{'md' if line % 7 == 0 else 'relaxations'}/random{line},frame0\n" for line in range(10**5))
    )
    log = TrajectoryLog(path)
    assert [line for line in range(99_990, 10**5) if log.is_md(line)] == [99_995]
