"""Sweep files: what they spread out to, and slips."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_samples import ROOT, write

from dens_plugin.cluster.sweeps import read_entries


@pytest.fixture
def folder(tmp_path):
    """experiment/a.yml and b.yml, and a folder for sweeps."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "sweep").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "experiment" / f"{name}.yml", {"model": {}})
    return tmp_path


def sweep(folder, **block):
    return read_entries([write(folder / "sweep" / "s.yml", block)])


def test_an_experiment_stands_for_itself(folder):
    path = folder / "experiment" / "a.yml"
    (entry,) = read_entries([path])
    assert (entry.config, entry.name, entry.changes, entry.seeds) == (path, "a", {}, None)


def test_a_sweep_spreads_out(folder):
    plain, changed = sweep(
        folder,
        experiments=[
            "../experiment/a.yml",
            {"config": "../experiment/b.yml", "name": "wide", "set": {"optim.batch_size": 8}, "nodes": 4},
        ],
        seeds=[0, 2],
        nodes=2,
        gpus=8,
    )
    assert plain.config.resolve() == folder / "experiment" / "a.yml"
    assert (plain.name, plain.seeds, plain.nodes, plain.gpus) == ("a", (0, 2), 2, 8)
    assert (changed.name, changed.changes, changed.nodes, changed.gpus) == ("wide", {"optim.batch_size": 8}, 4, 8)


def test_experiments_and_sweeps_alike(folder):
    path = write(folder / "sweep" / "s.yml", {"experiments": ["../experiment/a.yml"]})
    assert [entry.name for entry in read_entries([folder / "experiment" / "b.yml", path])] == ["b", "a"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("sweep/*.yml")), ids=lambda path: path.stem)
def test_shipped_sweep(path):
    entries = read_entries([path])
    assert len({entry.name for entry in entries}) == len(entries)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"experiments": []}, "`experiments` .* list of at least one"),
        ({"experiments": ["../experiment/a.yml"], "seed": [0]}, "unknown key 'seed' .*did you mean 'seeds'"),
        ({"experiments": ["../experiment/a.yml"], "seeds": []}, "seeds .* at least one"),
        ({"experiments": ["../experiment/a.yml"], "seeds": 3}, "seeds .* must be a list"),
        ({"experiments": ["../experiment/a.yml"], "seeds": [0, 0]}, "seeds .* repeat: 0, 0"),
        ({"experiments": ["../experiment/a.yml"], "seeds": [-1]}, "a seed .* at least 0, got -1"),
        ({"experiments": ["../experiment/a.yml"], "nodes": 0}, "nodes .* at least 1, got 0"),
        ({"experiments": [{"name": "x"}]}, "experiment 1 .* needs `config`"),
        ({"experiments": [{"config": "../experiment/a.yml", "sets": {}}]}, "unknown key 'sets'.*did you mean 'set'"),
        ({"experiments": [{"config": "../experiment/a.yml", "name": "a/b"}]}, "'a/b' .* cannot name a run's folder"),
        ({"experiments": [3]}, "experiment 1 .* must be a block"),
        ({"experiments": ["s.yml"]}, "is a sweep itself"),
    ],
)
def test_slips(folder, block, message):
    with pytest.raises(ValueError, match=message):
        sweep(folder, **block)


def test_missing_files(folder):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sweep(folder, experiments=["../nowhere.yml"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_entries([Path("nowhere.yml")])


def test_no_yaml(folder):
    path = folder / "bad.yml"
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ValueError, match=r"bad\.yml' is no YAML"):
        read_entries([path])
    path.write_text("just words")
    with pytest.raises(ValueError, match=r"bad\.yml' must be a block"):
        read_entries([path])
