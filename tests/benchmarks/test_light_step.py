from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def light_step():
    """The file as running a script there imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("light_step")


@pytest.fixture(autouse=True)
def _one_thread():
    """`main` sets the number of threads of this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_with_and_without_dens(light_step, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")  # as a process group leaves them, or a job's shell
    monkeypatch.setenv("MASTER_PORT", "29517")
    path = tmp_path / "new" / "steps.json"
    light_step.main(["dens", "--steps", "2", "--out", str(path)])
    (row,) = json.loads(path.read_text())["rows"].values()
    assert row["lower quartile"] <= row["dens_p75 / s2ef"] <= row["upper quartile"]
    assert row["s2ef, ms"] > 1
    assert capsys.readouterr().out.startswith("painn: dens_p75, ms ")


def test_torchmd_net_has_the_same_numbers(light_step):
    pytest.importorskip("torchmdnet.models.model", reason="TorchMD-NET is not installed", exc_type=ImportError)
    row = light_step.beside_torchmd(2)
    assert row["energies differ by"] < 1e-5
    assert row["forces differ by"] < 1e-5
    assert row["torchmd-net / ours"] > 0


def test_without_torchmd_net(light_step, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmdnet.models.model", None)
    with pytest.raises(SystemExit, match="torchmd"):
        light_step.beside_torchmd(2)
