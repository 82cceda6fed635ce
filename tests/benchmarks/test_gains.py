from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from experiments import model_of, read

from dens_plugin.checks.objective import objective_from_config
from dens_plugin.checks.preflight import require_model
from dens_plugin.report.readiness import LEARNT

METHODS = {
    *("s2ef", "dens", "dens_p75", "dens_quarter", "dens_copy", "dens_copy_p75", "dens_no_encoding", "dropped_labels"),
    *("noisy_nodes", "ndem"),
    *("pretrained", "pretrained_md17", "pretrained_dens"),
}
NETWORKS = ("painn", "torchmd_et", "torchmd_et_mini", "equiformer_mini")


@pytest.fixture
def methods(load):
    return load("gain_methods")


@pytest.fixture
def runs(load):
    return load("gain_runs")


@pytest.fixture
def tables(load):
    return load("gain_tables")


@pytest.fixture
def file(load):
    return load("gains")


@pytest.fixture
def cell(runs):
    return runs.cell_of("ethanol", 100, "painn", "dens", 1, 6000)


@pytest.fixture
def study(runs, tmp_path):
    """Its runs do not train: they write down what they were started with, and end well."""
    return runs.Study(tmp_path / "study", tmp_path)


@pytest.fixture
def started(runs, monkeypatch):
    calls = []

    def dens(arguments, log):
        calls.append([str(argument) for argument in arguments])
        if arguments[0] == "data":
            Path(arguments[3]).mkdir(parents=True)
            (Path(arguments[3]) / "manifest.json").write_text(json.dumps({"counts": {"train": 320}}))
        return 0

    monkeypatch.setattr(runs, "_dens", dens)
    return calls


def test_a_name_says_everything(tables, cell):
    assert cell.steps == 6006  # 462 epochs of 13 steps
    assert tables.Cell.of(cell.name, 0) == cell


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_fit_their_networks(methods, study, cell, method, network, tmp_path):
    """Each objective finds the heads that it needs, and an encoding only where it has forces to encode."""
    assert set(methods.METHODS) == METHODS
    assert set(methods.NETWORKS) == set(NETWORKS)
    if network == "equiformer_mini" and method in ("pretrained", "pretrained_md17"):
        with pytest.raises(ValueError, match="do not fit"):
            study.config(cell._replace(method=method, network=network))
        return
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(study.config(cell._replace(method=method, network=network))))
    config = read(path)
    require_model(model_of(config), objective_from_config(config))
    assert config["optim"]["max_epochs"] == 462
    if network != "equiformer_mini":  # whose plain backbone leaves no vectors
        assert config["model"]["backbone"]["model"].endswith("DeNS") == ("dens" in method or "dropped" in method)


@pytest.mark.parametrize("network", NETWORKS)
def test_pretraining_is_a_config(methods, runs, network, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"counts": {"train": 320}}))
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(runs.pretraining_config(network, methods.Pretraining(steps=100), [tmp_path])))
    config = read(path)
    require_model(model_of(config), objective_from_config(config))
    assert config["optim"]["max_epochs"] == 10  # of 320 / 32 steps


def test_weights_are_pretrained_once(study, runs, cell, started):
    """Two molecules start from the same weights; another seed from others."""
    one = cell._replace(method="pretrained")
    for each in (one, one._replace(molecule="uracil"), one._replace(seed=2), one):
        study.run(each)
    trained = [call[call.index("--identifier") + 1] for call in started if call[0] == "train"]
    assert [name.split("-")[0] for name in trained] == ["painn", "ethanol", "uracil", "painn", "ethanol"]
    config = yaml.safe_load((study.folder / "runs" / one.name / "config.yml").read_text())
    assert trained[0] in config["task"]["warm_start"]["path"]


def test_what_is_finished_is_skipped_also_by_its_earlier_name(study, runs, cell, started):
    study.run(cell)
    (study.folder / "runs" / cell.name).rename(study.folder / "runs" / "ethanol-100-painn-dens-s1")
    assert dict(runs.homes(study.folder)) == {cell: study.folder / "runs" / "ethanol-100-painn-dens-s1"}
    before = len(started)
    study.run(cell)
    assert len(started) == before
    study.run(runs.cell_of(*cell[:5], 12_000))
    assert len(started) > before


def test_what_was_interrupted_goes_on(study, cell, started):
    home = study.folder / "runs" / cell.name
    checkpoint = home / "checkpoints" / f"2026-01-01-00-00-00-000-{cell.name}" / "checkpoint.pt"
    for epoch, goes_on in ((None, False), (3, True), (462, False)):
        if epoch is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"config": {"cmd": {"identifier": cell.name}}, "step": 13 * epoch, "epoch": epoch}, checkpoint)
        (home / "log.txt").unlink(missing_ok=True)
        study.run(cell)
        assert started[-1][0] == "train"
        assert ("--resume" in started[-1]) is goes_on


def test_what_another_process_trains_is_left_alone(study, runs, cell, started):
    with runs._locked(study.folder / "runs" / cell.name):
        study.run(cell)
    assert started == []


def test_points_are_methods_with_other_settings(methods, tmp_path):
    points = methods.read_points(Path(methods.__file__).parent / "gain_points.yml")
    assert points["dens_prob_quarter"].objective == {**methods.METHODS["dens"].objective, "prob": 0.25}
    assert points["pretrained_sigma_half"].pretraining.sigma == 0.1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a-b: {method: dens}", "cannot be a name"),
        ("a b/c: {method: dens}", "cannot be a name"),
        ("dens: {method: dens}", "cannot be a name"),
        ("a: {method: den}", "needs `method`"),
        ("a: {method: dens, prob: 1}", "needs `method`"),
        ("a: 3", "needs `method`"),
        ("a: {method: dens, objective: 3}", "objective must be a block"),
        ("a: {method: dens, objective: {probb: 1}}", "probb"),
        ("a: {method: dens, pretraining: {sigma: 1}}", "has no sigma"),
        ("a: {method: pretrained, pretraining: {sigmas: 1}}", "has no sigmas"),
        ("", "has no points"),
        ("[", "no file of points"),
    ],
)
def test_points_that_cannot_be_used(methods, tmp_path, text, told):
    (tmp_path / "points.yml").write_text(text)
    with pytest.raises(ValueError, match=rf"points\.yml.*{told}"):
        methods.read_points(tmp_path / "points.yml")
    with pytest.raises(ValueError, match=r"nowhere\.yml"):
        methods.read_points(tmp_path / "nowhere.yml")


def test_missing_files_and_failed_runs_end_badly(file, runs, started, tmp_path, monkeypatch):
    """A missing file is told before anything is made; what fails later is told by the status."""
    options = ["run", str(tmp_path / "study"), "--data", str(tmp_path), "--molecules", "ethanol", "--seeds", "0"]
    with pytest.raises(SystemExit, match=r"rmd17_ethanol_train\.extxyz\.xz.*does not exist"):
        file.main(options)
    with pytest.raises(SystemExit, match="--jobs"):
        file.main([*options, "--jobs", "0"])
    assert not (tmp_path / "study").exists()
    for part in ("train", "test"):
        (tmp_path / f"rmd17_ethanol_{part}.extxyz.xz").touch()
    file.main(options)
    assert {call[0] for call in started} == {"data", "train"}
    monkeypatch.setattr(runs, "_dens", lambda arguments, log: 2)
    with pytest.raises(SystemExit, match="1"):
        file.main([*options, "--steps", "100"])
    logs = [log.read_text() for log in (tmp_path / "study/runs").glob("*-104/log.txt")]
    assert all(log.endswith("exit 2\n") for log in logs)
    assert len(logs) == 2


def test_a_table_of_nothing_is_not_written(file, study, cell, started, tmp_path):
    out = tmp_path / "gains.json"
    with pytest.raises(SystemExit, match="no finished run"):
        file.main(["table", str(tmp_path / "nowhere"), "--out", str(out)])
    study.run(cell)
    (study.folder / "runs" / ".DS_Store").touch()
    with pytest.raises(SystemExit, match="no run of foo; there are dens"):
        file.main(["table", str(study.folder), "--chosen", "foo", "--out", str(out)])
    with pytest.raises(SystemExit, match="json"):
        file.main(["table", str(study.folder), "--out", str(tmp_path / "points.yml")])
    assert not out.exists()
    out.write_text("{}")
    with pytest.raises(SystemExit, match="no table of gains"):
        file.main(["table", str(study.folder), "--out", str(out)])
    assert out.read_text() == "{}"


def _finished(tables, cell, forces, **changes):
    return tables.Finished(cell=cell, **{"forces": forces, "energy": 10.0, "fall": 0.0, "step_ms": 20.0, **changes})


def test_gains_pair_seeds(tables, cell):
    """A seed that only one method has counts for its mean, and not for the gain."""
    errors = {("s2ef", 0): 50.0, ("s2ef", 1): 60.0, ("dens", 0): 45.0, ("dens", 1): 48.0, ("dens", 2): 90.0}
    results = [
        _finished(tables, cell._replace(method=method, seed=seed), error) for (method, seed), error in errors.items()
    ]
    dens, s2ef = tables.gains(results)
    assert (dens["method"], s2ef["method"]) == ("dens", "s2ef")
    assert dens["forces"] == pytest.approx(61)
    assert dens["forces_gain"] == pytest.approx(15)  # of 10 and 20
    assert dens["forces_gain_error"] == pytest.approx(5)
    assert dens["minutes"] == pytest.approx(20 * 6006 / 60e3)
    assert "+15.0% ± 5.0" in tables.markdown([dens, s2ef], "test")


def test_steps_are_compared_with_equal_steps(tables, cell):
    """Equal time is another comparison: with the shortest run without denoising that took as long."""
    base = cell._replace(method="s2ef")
    results = [
        _finished(tables, cell, 45.0, step_ms=30.0),
        _finished(tables, base, 50.0),
        _finished(tables, base._replace(steps=9009), 48.0),  # as long
        _finished(tables, base._replace(steps=20_007), 30.0),
    ]
    row = next(row for row in tables.gains(results) if row["method"] == "dens")
    assert row["forces_gain"] == pytest.approx(10)
    assert row["forces_gain_at_equal_time"] == pytest.approx(100 * (1 - 45 / 48))
    costly = tables.gains([_finished(tables, cell, 45.0, pretraining_minutes=60.0), *results[1:]])
    assert next(row for row in costly if row["method"] == "dens")["forces_gain_at_equal_time"] is None


def test_fewer_steps_are_compared_with_the_next_more(tables, cell):
    base = cell._replace(method="s2ef")
    longer = [_finished(tables, base._replace(steps=steps), error) for steps, error in ((9009, 48.0), (20_007, 30.0))]
    shorter = _finished(tables, base._replace(steps=1001), 90.0)
    row = next(
        row for row in tables.gains([_finished(tables, cell, 45.0), shorter, *longer]) if row["method"] == "dens"
    )
    assert row["forces_gain"] == pytest.approx(100 * (1 - 45 / 48))
    assert next(row for row in tables.gains([_finished(tables, cell, 45.0), shorter]))["forces_gain"] is None


def test_rows_say_in_the_words_of_reports_that_they_are_not_ready(tables, cell):
    results = [
        _finished(tables, cell._replace(method=method, seed=seed), 50.0, noise=noise)
        for method, noise in (("s2ef", None), ("dens", LEARNT + 0.1))
        for seed in (0, 1)
    ]
    rows = tables.gains(results)
    dens, s2ef = rows
    assert s2ef["not_ready"] is None
    assert dens["not_ready"].startswith("Not ready to be judged: the noise error is above 0.7 of predicting none (dens")
    text = tables.markdown(rows, "test")
    assert "| ethanol [1] |" in text
    assert f"[1] {dens['not_ready']}" in text


def test_what_other_folders_gave_stays(tables, file, cell, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gains.json"
    for seed in (0, 1):
        found = [_finished(tables, cell._replace(method=method, seed=seed), 50.0 - seed) for method in ("s2ef", "dens")]
        monkeypatch.setattr(file, "finished", lambda folder, found=found, **_: found)
        file.report([tmp_path], out, validation=False)
    table = json.loads(out.read_text())["table"]
    assert [row["seeds"] for row in table] == [[0, 1], [0, 1]]
    assert out.with_suffix(".png").exists()
    assert "50.0, 49.0" in capsys.readouterr().out


def test_a_search_reads_no_test_set(file, study, cell, started, monkeypatch):
    """Neither by its table of validation errors, nor where its runs lie beside finished ones."""
    study.methods = {**study.methods, "point": study.methods["dens"]}
    study.run(cell)
    study.run(cell._replace(method="point"))
    errors = {"forces": 1.0, "energy": 1.0}
    read = []
    monkeypatch.setattr(file, "_run", lambda home: home)
    monkeypatch.setattr(file, "_left_by", lambda run: {})
    monkeypatch.setattr(file, "_validated", lambda run: errors)
    monkeypatch.setattr(file, "_tested", lambda run, home, source: read.append(home.name) or errors)
    assert len(list(file.finished(study.folder, validation=True))) == 2
    assert read == []
    assert [result.cell for result in file.finished(study.folder, validation=False)] == [cell]
    assert read == [cell.name]
    assert len(list(file.finished(study.folder, validation=False, chosen=["point"]))) == 2


def test_time_of_a_step_leaves_interruptions_out(file):
    class Run:
        def rows(self, split, metric):
            return [{"step": step, "time": time} for step, time in ((0, 0), (10, 1), (20, 2), (30, 900), (40, 901))]

    assert file._step_ms(Run()) == pytest.approx(100)


def test_only_a_good_end_is_one(runs, tmp_path):
    (tmp_path / "log.txt").write_text("...\nexit 1\n")
    assert not runs.is_finished(tmp_path)
    (tmp_path / "log.txt").write_text("...\nexit 0\n")
    assert runs.is_finished(tmp_path)
