import math

import pytest
import torch
from report_samples import write_run

from dens_plugin.report.runs import find_runs

ERRORS = [(0.04, 1.0), (0.02, 0.6)]


def save(folder, *, seed, lr=1e-3, objective="dens", start=None):
    warm_start = {} if start is None else {"warm_start": {"path": start, "new_heads": ["energy"]}}
    config = {
        "cmd": {"identifier": folder.name[20:], "seed": seed},
        "task": {"objective": {"name": objective}, **warm_start},
        "optim": {"lr_initial": lr},
    }
    torch.save({"config": config, "state_dict": {}}, folder / "best_checkpoint.pt")


def test_a_run_dir_stands_for_all_its_runs_once(tmp_path):
    first = write_run(tmp_path, "a_seed0", ERRORS)
    write_run(tmp_path, "a_seed1", ERRORS)
    assert [run.label for run in find_runs([tmp_path])] == ["a_seed0", "a_seed1"]
    assert [run.label for run in find_runs([first])] == ["a_seed0"]
    assert len(find_runs([first, tmp_path])) == 2


def test_labels_are_unique(tmp_path):
    labels = [run.label for run in find_runs([write_run(tmp_path / name, "a", ERRORS) for name in "xyz"])]
    assert len(set(labels)) == 3


def test_seeds_share_a_group_and_configs_do_not(tmp_path):
    for name, seed, lr in (("a_seed0", 0, 1e-3), ("a_seed1", 1, 1e-3), ("b_seed7", 7, 1e-3), ("a_seed9", 9, 5e-4)):
        save(write_run(tmp_path, name, ERRORS), seed=seed, lr=lr)
    write_run(tmp_path, "b", ERRORS)  # a run without a checkpoint is known by its name alone
    groups = {run.label: run.group for run in find_runs([tmp_path])}
    assert groups["a_seed0"] == groups["a_seed1"] == groups["b_seed7"]
    assert groups["a_seed9"] != groups["a_seed0"]
    assert groups["b"] == groups["b_seed7"]


def test_objective_and_seed_come_from_the_config_else_from_history_and_label(tmp_path):
    save(write_run(tmp_path, "mine_seed3", ERRORS), seed=5, objective="dens")
    write_run(tmp_path, "other_seed3", ERRORS, denoises=True)
    write_run(tmp_path, "plain", ERRORS)
    runs = {run.label: (run.objective, run.seed) for run in find_runs([tmp_path])}
    assert runs == {"mine_seed3": ("dens", 5), "other_seed3": ("–", 3), "plain": ("–", None)}


def test_a_baseline_predicts_nothing_of_its_own(tmp_path):
    save(write_run(tmp_path, "a", ERRORS), seed=0, objective="dens")
    save(write_run(tmp_path, "b", ERRORS), seed=0, objective="s2ef")
    write_run(tmp_path, "c", ERRORS, denoises=True)  # no config: told by the errors that it prints
    write_run(tmp_path, "d", ERRORS)
    methods = {run.label: run.method for run in find_runs([tmp_path])}
    assert {label: method.outputs for label, method in methods.items()} == {
        "a": ("noise",),
        "b": (),
        "c": ("noise",),
        "d": (),
    }
    assert methods["a"].noise == pytest.approx(0.1 * (2 / math.pi) ** 0.5)
    assert [label for label, method in methods.items() if method.is_baseline] == ["b", "d"]


def test_fine_tuning_is_a_method(tmp_path):
    """Its seeds may start from seeds of one pre-training; what starts from another one is another configuration."""
    start = "runs/checkpoints/2026-01-02-03-04-0{}-{}_seed{}/best_checkpoint.pt"
    for name, objective, path in (
        ("tuned_seed0", "s2ef", start.format(0, "pre", 0)),
        ("tuned_seed1", "s2ef", start.format(1, "pre", 1)),
        ("tuned_seed2", "s2ef", start.format(2, "other", 2)),
        ("dens_seed0", "dens", None),
        ("tuned_dens_seed0", "dens", start.format(0, "pre", 0)),
        ("plain_seed0", "s2ef", None),
    ):
        save(write_run(tmp_path, name, ERRORS), seed=int(name[-1]), objective=objective, start=path)
    runs = {run.label.removesuffix("_seed0"): run for run in find_runs([tmp_path])}
    assert runs["tuned"].group == runs["tuned_seed1"].group != runs["tuned_seed2"].group
    assert (runs["tuned"].objective, runs["plain"].objective) == ("s2ef, fine-tuned", "s2ef")
    methods = {name: run.method for name, run in runs.items()}
    assert [name for name, method in methods.items() if method.is_baseline] == ["plain"]
    assert {
        (one, other)
        for one in ("plain", "dens", "tuned", "tuned_dens")
        for other in ("plain", "dens", "tuned", "tuned_dens")
        if methods[one].is_baseline_of(methods[other])
    } == {("plain", "dens"), ("plain", "tuned"), ("plain", "tuned_dens"), ("tuned", "tuned_dens")}


def test_time_starts_at_step_0(tmp_path):
    (run,) = find_runs([write_run(tmp_path, "a", ERRORS)])
    assert [run.minutes(row["time"]) for row in run.rows("val", "forces_mae")] == [10.0, 20.0]


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*give RUN_DIR"):
        find_runs([tmp_path / "nowhere"])


def test_no_history(tmp_path):
    (tmp_path / "checkpoints" / "2026-a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no history.jsonl.*wait for it"):
        find_runs([tmp_path])


def test_empty_history(tmp_path):
    with pytest.raises(ValueError, match="no rows yet"):
        find_runs([write_run(tmp_path, "a", [])])


def test_a_run_without_history_is_left_out_beside_others(tmp_path, caplog):
    write_run(tmp_path, "a", [])
    write_run(tmp_path, "b", ERRORS)
    assert [run.label for run in find_runs([tmp_path])] == ["b"]
    assert "-a/history.jsonl' has no rows yet" in caplog.text


def test_damaged_lines_are_left_out_and_named(tmp_path, caplog):
    folder = write_run(tmp_path, "a", ERRORS)
    file = folder / "history.jsonl"
    lines = file.read_bytes().splitlines()
    lines[1:1] = [b"\xff\xfe", b"[1, 2]", b'{"split": "val"}', b'{"split": "train", "step": 5}']
    file.write_bytes(b"\n".join(lines))
    (run,) = find_runs([folder])
    assert len(run.history) == 4
    assert "history.jsonl' are damaged and left out: 2, 3, 4, 5" in caplog.text


def test_broken_checkpoint(tmp_path):
    folder = write_run(tmp_path, "a", ERRORS)
    (folder / "best_checkpoint.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"best_checkpoint.pt.*move it out of the folder"):
        find_runs([folder])
