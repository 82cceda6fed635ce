"""`dens probe` on a CPU, with a model whose memory grows by some megabytes a structure."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest
import yaml
from fairchem.core.datasets.base_dataset import Subset
from samples import base_config, write_lmdb

from dens_plugin.cli import main
from dens_plugin.probe.memory import CpuMeter
from dens_plugin.probe.probe import _sizes
from dens_plugin.testing import random_structure

ATOMS = (4, 30, 8, 24)
LARGER = {"sphere_channels": 16, "lmax_list": [2], "mmax_list": [2], "max_radius": 6.0, "num_layers": 2}


@pytest.fixture
def config(tmp_path):
    """The path of a config whose data no other test has open."""
    for split in ("train", "val"):
        structures = [random_structure(size, seed=size, sid=size) for size in ATOMS]
        write_lmdb(tmp_path / "data" / split, structures)
    settings = base_config(tmp_path / "data")
    settings["model"] |= LARGER
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


def rows(text):
    """Batch -> atoms and peak in GiB, of the printed table."""
    found = re.findall(r"^ +(\d+) +(\d+) +([\d.]+|too much) ", text, re.MULTILINE)
    return {int(batch): (int(atoms), float(peak)) for batch, atoms, peak in found}


def proposal(text):
    return int(re.search(r"^optim.batch_size: (\d+)", text, re.MULTILINE)[1])


def test_proposes_a_batch_whose_measured_peak_fits(config, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    meter = CpuMeter()
    meter.start()
    limit = meter.peak() / 2**20 + 250
    main(["probe", "--config-yml", str(config), "--cpu", f"--memory={limit:.0f}MiB", "--margin=0", "--most=16"])
    printed = capsys.readouterr().out
    table, best = rows(printed), proposal(printed)
    assert "The largest structures have 30 to 4 atoms." in printed
    assert table[1][0] == 30
    assert table[2][0] == 54
    assert 1024 * table[best][1] <= limit + 6  # the table has two digits
    larger = [peak for batch, (_, peak) in table.items() if batch > best]
    assert best == 16 or not larger or min(larger) * 1024 > limit - 6
    assert not list(folder.iterdir())  # nothing saved


def test_says_when_nothing_fits(config, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["probe", "--config-yml", str(config), "--cpu", "--memory=20MB"])
    assert ended.value.code == 2
    assert "not even one of the largest structures fits into 0.02 GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory=much"], "an amount of memory is a number with GB"),
        (["--margin=1"], "--margin must be from 0 to below 1, got 1"),
        (["--most=-1"], "--most must be a whole number of at least 1, got -1"),
        (["--sample=0"], "--sample must be a whole number of at least 1, got 0"),
        (["--set", "optim.lr=3"], "unknown key 'lr' in optim"),
        (["--set", "dataset.train=None"], "set dataset.train.src"),
        (["--set", "optim"], "--set 'optim' is no setting: write KEY=VALUE"),
    ],
)
def test_refuses(config, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        main(["probe", "--config-yml", str(config), "--cpu", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_looks_at_a_sample_where_sizes_are_not_known(config, capsys):
    (config.parent / "data" / "train" / "metadata.npz").unlink()
    main(["probe", "--config-yml", str(config), "--cpu", "--most=1", "--sample=4"])
    assert "The largest structures have 30 to 30 atoms." in capsys.readouterr().out


def test_metadata_of_a_whole_data_set_are_not_those_of_a_part():
    """fairchem's subset answers with the sizes of the whole, by the wrong indices."""
    sizes = {"natoms": np.array([4, 30, 8])}
    whole = argparse.Namespace(config={}, _metadata=sizes, metadata_hasattr=lambda name: name in sizes)
    assert _sizes(whole).tolist() == [4, 30, 8]
    assert _sizes(Subset(whole, [2, 0], metadata=sizes)) is None
