from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from cluster_samples import ROOT, tiny, write
from loopback import missing_programs, running
from samples import write_lmdb

from dens_plugin.testing import random_structure


@pytest.fixture(scope="session")
def cluster():
    """Two Slurm nodes on this machine, known to all commands; skips where Slurm is not installed."""
    missing = missing_programs()
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    # A short path: that of a socket has at most 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        running(Path(folder)) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder: data (12 structures and 2), a site without GPUs, and the experiment tiny.yml."""
    monkeypatch.chdir(tmp_path)
    structures = [random_structure(4 + index % 3, seed=index, sid=index) for index in range(14)]
    write_lmdb(tmp_path / "train", structures[:12])
    write_lmdb(tmp_path / "val", structures[12:])
    (tmp_path / "site.yml").write_text((ROOT / "slurm" / "loopback.yml").read_text())
    write(tmp_path / "tiny.yml", tiny())
    return tmp_path
