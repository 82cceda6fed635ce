import json
import os
import subprocess
from pathlib import Path

import pytest
from samples import write_lmdb

from dens_plugin.testing import random_structure

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = ["--lmax=1", "--layers=1", "--channels=8", "--threads=1", "--batch=2", "--data=synthetic"]


def test_errors_are_those_of_the_precision(load, tmp_path, capsys):
    path = load("precision").main([*OPTIONS, f"--out={tmp_path}"])
    errors = json.loads(path.read_text())["errors"]
    assert list(errors) == ["ours_host, fp32", "ours, fp32", "ours, bf16"]
    for who, values in errors.items():
        low, high = (1e-4, 0.3) if "bf16" in who else (1e-9, 1e-5)
        assert list(values) == ["energy", "forces", "noise", "gradient", "worst parameter's gradient"]
        assert all(low < values[name] < high for name in ("forces", "noise", "gradient")), who
    assert "Not on a CPU: tf32, amp." in capsys.readouterr().out


def test_error_finds_a_changed_weight(load):
    errors, modes = load("errors"), load("modes")
    settings = load("sizes").paper_settings("equiformer_v2", lmax=1, layers=1, channels=8)
    (sample,) = load("structures").draw_samples("synthetic", count=1, size=1, seed=0, device="cpu")
    exact = errors.reference(settings, sample, "cpu")
    name = "output_heads.forces.force_block.proj.weight"
    changed = exact._replace(state={**exact.state, name: exact.state[name] * 1.01})
    found = errors.relative_errors(changed, "ours_host", modes.Mode("fp32"))
    assert found["forces"] == pytest.approx(0.01, rel=1e-3)
    assert found["energy"] < 1e-5


def test_curves_read_a_history(load, tmp_path):
    rows = [{"split": "train", "step": step, "time": 0.0, "loss": float(step)} for step in (1, 2, 3)]
    rows += [{"split": "val", "step": 3, "forces_mae": 0.5, "energy_mae": 2.0}]
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = load("curves").read_curves(history)
    assert list(curves.values()) == [[(1, 1.0), (2, 1.5), (3, 2.0)], [(3, 0.5)], [(3, 2.0)]]
    load("plots").plot_curves({"fp32": curves, "bf16": curves}, tmp_path / "curves.png", "a machine")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_runs_differ_in_precision_and_seed(load, tmp_path):
    structures = [random_structure(5, seed=index, sid=index) for index in range(40)]
    folders = {split: write_lmdb(tmp_path / split, structures) for split in ("train", "val", "test")}
    options = [f"--dataset.{split}.src={folder}" for split, folder in folders.items()]
    runs = load("curves").train_all(tmp_path / "runs", ["fp32", "bf16"], steps=6, device="cpu", options=options)
    assert list(runs) == ["fp32, seed 0", "bf16, seed 0", "fp32, seed 1"]
    losses = [dict(curves["training loss"]) for curves in runs.values()]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=0.05)
    assert losses[0] != losses[1] != losses[2]
    assert all(curves["validation forces, eV/Å"][-1][0] == 6 for curves in runs.values())


def test_gpu_script_names_an_unknown_part():
    environment = {**os.environ, "PYTHON": "false"}
    command = ["sh", str(BENCHMARKS / "gpu.sh"), "training", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "no part 'nonsense'; parts are kernels training" in done.stderr
    assert "failed: training nonsense" in done.stderr
