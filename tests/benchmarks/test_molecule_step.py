from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from dens_plugin.fields import CORRUPTION, ROWS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def molecule_step():
    """The file as running a script there imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("molecule_step")


@pytest.fixture(autouse=True)
def _one_thread():
    """`main` sets the number of threads of this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_table_and_file_hold_every_ratio(molecule_step, tmp_path, capsys, monkeypatch):
    tiny = {"channels": [4, 2, 2], "head_channels": [1, 1, 1], "ffn_channels": [4, 2, 2], "feature_channels": [8, 4, 2]}
    monkeypatch.setitem(molecule_step._SIZES, "mini", tiny | {"num_layers": 1, "radial_channels": [4, 4]})
    options = ["--size=mini", "--molecules", "ethanol", "--batch=4", "--rounds=2", "--no-memory"]
    path = molecule_step.main([*options, "--out", str(tmp_path / "new" / "report.json")])
    table = json.loads(path.read_text())["table"]
    assert [(row["ours"], row["other"]) for row in table] == [("dens", "twin"), ("dens", "plain")]
    for row in table:
        low, high = row["quartiles"]
        assert low <= row["median"] <= high
    printed = capsys.readouterr().out
    assert "| dens / twin |" in printed
    assert "largest relative differences" in printed


@pytest.mark.parametrize(("name", "atoms"), [("ethanol", 9), ("aspirin_size", 21)])
def test_sample(molecule_step, name, atoms):
    """About p r of the atoms are corrupted, and their forces do not count."""
    clean, corrupted = molecule_step.draw_sample(name, 8)
    assert clean.num_nodes == 8 * atoms
    mask = corrupted[CORRUPTION].mask
    assert mask.float().mean().item() == pytest.approx(1 / 16, abs=0.5 / atoms)
    assert not corrupted[ROWS]["forces"].mask[mask].any()
