"""The benchmark of recorded steps, tiny and with a pretended recorder in place of a GPU's."""

from __future__ import annotations

import json

import pytest
from graph_recorder import PretendedRecorder, as_on_a_gpu

OPTIONS = ["--device=cpu", "--batch", "1", "--precision", "fp32", "--steps=2", "--lmax=1", "--layers=1", "--channels=8"]


@pytest.fixture
def graphs(load, monkeypatch):
    """The file, where a recorder is found for every device."""
    module = load("graphs")
    monkeypatch.setattr(module, "recorder_for", lambda _: PretendedRecorder())
    with as_on_a_gpu():
        yield module


def test_table_plot_and_file(graphs, tmp_path, capsys):
    path = graphs.main([*OPTIONS, "--molecules=mini", "--out", str(tmp_path)])
    report = json.loads(path.read_text())
    assert report["failures"] == {}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    sizes = [(row["size"], row["measure"]) for row in report["table"]]
    assert sizes[:2] == [("83M, batch 1", "step, s"), ("83M, batch 1", "inference, s")]
    for row in report["table"]:
        assert {"ordinary"} <= row["times_less"].keys()
        assert row["largest_difference"] < 1e-6
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(report["table"])
    assert len({line.count("|") for line in printed}) == 1


def test_a_replay_that_differs_is_not_timed(graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "largest_difference", lambda *_: 0.5)
    report = json.loads(graphs.main([*OPTIONS, "--only=83m", "--out", str(tmp_path)]).read_text())
    assert report["table"] == []
    assert "a replay differs from an ordinary step by 5.0e-01" in report["failures"]["83M, batch 1, fp32"]
