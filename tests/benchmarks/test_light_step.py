from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def light_step(load):
    return load("light_step")


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
