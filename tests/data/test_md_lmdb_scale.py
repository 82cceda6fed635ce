"""All+MD has 172 million structures: opening them reads no log, and a log costs bytes a line, not its text."""

from __future__ import annotations

import pickle
import time
import tracemalloc

import lmdb
import pytest

from dens_plugin.data.md_lmdb import MDFlaggedLmdb
from dens_plugin.testing import random_structure

LINE = "/data/oc20/{kind}/all/0000/random{number}.traj,{number},365\n"


def lines(number):
    """A log, every third line of molecular dynamics."""
    return "".join(LINE.format(kind="relaxations" if line % 3 else "md", number=line) for line in range(number))


def write(folder, *, files, structures):
    """LMDBs that promise many structures and have the first and the last."""
    text = lines(structures)
    for file in range(files):
        path = str(folder / f"data.{file:04}.lmdb")
        with lmdb.open(path, subdir=False, map_size=1 << 24, lock=False) as env, env.begin(write=True) as records:
            records.put(b"length", pickle.dumps(structures))
            for index in (0, structures - 1):
                records.put(str(index).encode(), pickle.dumps(random_structure(3, seed=index)))
        (folder / f"data_log.{file:04}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(("files", "structures"), [(20, 100_000), (1, 500_000)])
def test_millions_of_structures_open_at_once(tmp_path, files, structures):
    write(tmp_path, files=files, structures=structures)
    source = tmp_path if files > 1 else tmp_path / "data.0000.lmdb"
    started = time.process_time()
    dataset = MDFlaggedLmdb({"src": str(source)})
    assert time.process_time() - started < 1
    assert len(dataset) == files * structures
    assert dataset[0].md
    assert dataset[len(dataset) - structures].md
    assert dataset[structures - 1].md == ((structures - 1) % 3 == 0)


def test_memory(tmp_path):
    files, structures = 10, 20_000
    text = len(lines(structures))
    write(tmp_path, files=files, structures=structures)
    tracemalloc.start()
    dataset = MDFlaggedLmdb({"src": str(tmp_path)})
    opened, _ = tracemalloc.get_traced_memory()
    assert opened < 2 * files * structures
    _ = dataset.indices
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for file in range(files):
        assert dataset[file * structures].md
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < files * structures  # of more than 50 bytes a line
    assert peak - after < 2 * text
