import argparse
import gc
import json
import re

import ase.build
import numpy as np
import pytest
import torch
from fairchem.core.common import distutils
from matplotlib.image import imread
from report_samples import write_run
from samples import base_config, trainer_arguments, write_lmdb

from dens_plugin.data.structures import from_atoms
from dens_plugin.objectives.dens import DeNS
from dens_plugin.objectives.ndem import NDeM
from dens_plugin.objectives.noisy_nodes import NoisyNodes
from dens_plugin.objectives.pretrain import DenoisePretraining
from dens_plugin.objectives.s2ef import S2EF
from dens_plugin.report import corruptions, error_plots, plots, predictions, report
from dens_plugin.report.runs import find_runs
from dens_plugin.testing import random_structure
from dens_plugin.training.trainer import DeNSTrainer

ERRORS = [(0.04, 1.0), (0.02, 0.6), (0.01, 0.5)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of three steps, with a validation, on data beside it."""
    root = tmp_path_factory.mktemp("trained")
    structures = [random_structure(4 + index % 4, seed=index, sid=index) for index in range(11)]
    write_lmdb(root / "train", structures[:6])
    write_lmdb(root / "val", structures[6:])
    distutils.setup_env_local()
    config = base_config(root)
    config["optim"]["eval_every"] = 2
    trainer = DeNSTrainer(**trainer_arguments(config, run_dir=root, identifier="tiny"))
    trainer.train()
    del trainer
    gc.collect()  # closes the data, which may be open only once in a process
    return root


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    return report.write_report([trained], tmp_path_factory.mktemp("written"))


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return parser.parse_args(list(map(str, arguments)))


def test_the_page_needs_no_other_file(written):
    page = written.page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(written.pictures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "<script" not in page


def test_all_pictures_are_written(written):
    names = {picture.path.stem for picture in written.pictures}
    curves = {"learning_curves", "training_curves"}
    assert names == curves | {"parity_energy", "parity_forces", "element_errors", "corrupted_structures"}
    for picture in written.pictures:
        assert imread(picture.path).std() > 0.01, picture.path.name


def test_predictions_have_the_errors_of_the_runs_own_validation(trained):
    (run,) = find_runs([trained])
    assert run.checkpoint.name == "best_checkpoint.pt"
    best = min(run.rows("val", "forces_mae"), key=lambda row: row["forces_mae"])
    predicted = predictions.predict(run, "val", max_structures=100)
    # Random edge frames turn predictions by rounding errors, and float32 sums differ in order.
    assert predicted.forces_mae == pytest.approx(best["forces_mae"], rel=1e-3)
    assert predicted.energy_mae == pytest.approx(best["energy_mae"], rel=1e-3)
    assert len(predicted.energy) == 5


def test_fixed_atoms_do_not_count(trained):
    (run,) = find_runs([trained])
    predicted = predictions.predict(run, "val", max_structures=100)
    free = sum(int((random_structure(4 + index % 4, seed=index).fixed == 0).sum()) for index in range(6, 11))
    assert len(predicted.forces) == len(predicted.numbers) == free
    weights = np.unique(predicted.numbers, return_counts=True)[1]
    assert np.average(list(predicted.element_errors().values()), weights=weights) == pytest.approx(predicted.forces_mae)


def test_predictions_are_kept_until_the_checkpoint_changes(trained, tmp_path, monkeypatch):
    (run,) = find_runs([trained])
    calls = []
    real = predictions.predict
    monkeypatch.setattr(predictions, "predict", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    path = tmp_path / "predictions_val.npz"
    first = predictions.PredictionCache(path).get(run, "val", max_structures=2)
    second = predictions.PredictionCache(path).get(run, "val", max_structures=2)
    assert len(calls) == 1
    assert np.array_equal(first.forces, second.forces)
    predictions.PredictionCache(path).get(run, "val", max_structures=1)
    assert len(calls) == 2


def test_parameters_are_in_the_table(trained, written):
    row = dict(zip(written.tables[0].header, written.tables[0].rows[0], strict=True))
    state = torch.load(next(trained.glob("checkpoints/*/checkpoint.pt")), weights_only=False)
    assert row["Run"] == "tiny"
    assert row["Parameters"] == f"{sum(value.numel() for value in state['ema']['shadow_params']):,}"


def test_the_table_is_a_file_and_printed(tmp_path, capsys):
    write_run(tmp_path, "toy_dens_seed0", ERRORS, denoises=True)
    write_run(tmp_path, "toy_s2ef_seed0", ERRORS)
    report.run(parsed(tmp_path, "--out", tmp_path / "out", "--no-predictions"))
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in capsys.readouterr().out
    assert "| toy_dens_seed0 |" in table
    assert (tmp_path / "out" / "learning_curves.png").is_file()


def test_a_run_without_checkpoint_has_curves_only_and_the_report_says_so(tmp_path):
    write_run(tmp_path, "toy", ERRORS)
    made = report.write_report([tmp_path], tmp_path / "out")
    assert {picture.path.stem for picture in made.pictures} == {"learning_curves", "training_curves"}
    assert made.verdict == []
    assert made.notes == ["toy: no checkpoint yet, so its curves only."]
    assert made.notes[0] in made.page.read_text()


def test_runs_of_different_length_are_noted(tmp_path):
    write_run(tmp_path, "short", ERRORS[:2])
    write_run(tmp_path, "long", ERRORS)
    made = report.write_report([tmp_path], tmp_path / "out", with_predictions=False)
    assert any("different steps (200 to 300)" in note for note in made.notes)


def test_the_report_begins_with_who_won(tmp_path, capsys):
    write_run(tmp_path, "toy_dens_seed0", ERRORS, denoises=True)
    write_run(tmp_path, "toy_s2ef_seed0", [(forces + 0.01, energy) for forces, energy in ERRORS])
    report.run(parsed(tmp_path, "--out", tmp_path / "out", "--no-predictions"))
    first, second = capsys.readouterr().out.split("\n\n")[:2]
    assert first.startswith("toy_dens won against toy_s2ef: its forces are 50% better (10.0 against 20.0 meV/Å")
    assert second.startswith("Not ready to be judged: errors still fall")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("won against") < page.index("<table>")


def test_a_short_pretraining_is_a_run(tmp_path):
    """Of fewer steps than --print-every: only its validations are in the history, and they have no forces."""
    folder = write_run(tmp_path, "pre", ERRORS[:1])
    row = {"split": "val", "step": 8, "time": 1e9, "epoch": 1.0, "noise_mae": 0.125, "noise_relative": 0.9}
    (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    config = {"cmd": {"identifier": "pre", "seed": 0}, "task": {"objective": {"name": "pretrain", "sigma": 0.2}}}
    torch.save({"config": config, "state_dict": {}}, folder / "best_checkpoint.pt")
    made = report.write_report([tmp_path], tmp_path / "out", with_predictions=False)
    assert [row[:2] for row in made.tables[0].rows] == [("pre", "pretrain")]
    assert made.notes == [
        "pre: it printed no training step, as there were fewer than --print-every.",
        "pre: its objective, pretrain, learns no forces to compare: noise_mae 0.125, noise_relative 0.9.",
    ]
    assert report._predictions(find_runs([folder]), tmp_path, split="val", max_structures=1) == {}


def test_a_validation_is_no_run(tmp_path):
    write_run(tmp_path, "toy", ERRORS, denoises=True)
    folder = write_run(tmp_path, "validated", ERRORS[:1])
    lines = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text(lines[1] + "\n")  # without the step of training
    made = report.write_report([tmp_path], tmp_path / "out", with_predictions=False)
    assert [row[0] for table in made.tables for row in table.rows] == ["toy"]
    assert "validated is a validation, not a training: forces_mae 0.04, energy_mae 1." in made.notes


def test_missing_data(trained):
    (run,) = find_runs([trained])
    config = {**run.config, "val_dataset": {"src": "gone/val"}}
    with pytest.raises(FileNotFoundError, match=r"gone/val.*--no-predictions"):
        predictions.dataset_of(config, "val")
    with pytest.raises(ValueError, match=r"no dataset\.test\.src"):
        predictions.dataset_of(config, "test")


def test_impossible_options(tmp_path):
    with pytest.raises(ValueError, match="--max-structures must be a whole number of at least 1, got 0"):
        report.write_report([tmp_path], tmp_path, max_structures=0)


def test_out_that_is_a_file(tmp_path):
    """Told before anything is predicted."""
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ValueError, match=r"report' is a file; give --out a folder"):
        report.write_report([tmp_path], tmp_path / "report")


def test_cell_of_a_slab_is_drawn_without_the_vector_along_its_vacuum():
    slab = ase.build.fcc111("Cu", (2, 2, 3), vacuum=8)
    slab.pbc = True
    edges = np.stack(list(corruptions._cell_edges(from_atoms(slab))))
    assert len(edges) == 4
    assert np.allclose(edges[:, :, 2], slab.positions[:, 2].min())
    molecule = from_atoms(ase.build.molecule("H2O"))
    assert not list(corruptions._cell_edges(molecule))
    crystal = from_atoms(ase.build.bulk("Cu", cubic=True))
    assert len(list(corruptions._cell_edges(crystal))) == 12


def test_parity_has_one_scale_of_colours_and_a_bar(trained):
    (run,) = find_runs([trained])
    generator = np.random.default_rng(0)
    label = generator.normal(size=(400, 3))
    made = predictions.Predictions(
        energy=label[:5, 0],
        energy_label=label[:5, 0],
        forces=label + 0.1,
        forces_label=label,
        numbers=np.ones(400),
        available=np.asarray(5),
        parameters=np.asarray(1),
    )
    figure = error_plots.parity([run], {run.label: made}, "forces")
    assert "MAE 100.0, RMSE 100.0 meV/Å" in figure.axes[0].get_title()
    assert figure.axes[1].get_ylabel() == "force components in a hexagon"


def test_a_logarithmic_axis_says_so(tmp_path):
    write_run(tmp_path, "toy", [(1.0, 1.0), (0.01, 0.9)])
    panels = plots.learning_curves(find_runs([tmp_path])).axes
    assert [panel.get_ylabel().endswith("log scale") for panel in (panels[0], panels[2])] == [True, False]


CORRUPTING = {
    "dens": DeNS(prob=0.5),
    "dens beside its clean structures": DeNS(prob=1.0, keep_labels=True),
    "ndem": NDeM(),
    "noisy nodes": NoisyNodes(),
    "noisy nodes in two passes": NoisyNodes(keep_labels=True),
    "pre-training": DenoisePretraining(),
}


@pytest.mark.parametrize("objective", CORRUPTING.values(), ids=CORRUPTING)
def test_draws_are_those_of_the_objective(objective):
    """Also of one that knows copies: atoms that move are free, and each epoch has a draw of its own."""
    data = random_structure(9, seed=1)
    draws = list(corruptions._draws(data, objective, 0))
    moved = [np.abs(draw.positions - data.pos.numpy()).max(axis=1) > 0 for draw in draws]
    assert len(draws) == len({draw.epoch for draw in draws}) == 3
    assert all(each.any() and not each[data.fixed.numpy() == 1].any() for each in moved)
    assert not np.allclose(draws[0].positions, draws[1].positions)


def test_nothing_is_drawn_of_an_objective_that_moves_nothing():
    assert corruptions.corrupted_structures([random_structure(6, seed=0)], S2EF()) is None


@pytest.mark.parametrize("periodic", [True, False])
def test_a_row_for_each_structure(periodic):
    structures = [random_structure(6, seed=seed, sid=seed) for seed in range(3)]
    if not periodic:
        for data in structures:
            data.cell = torch.zeros(1, 3, 3)
    figure = corruptions.corrupted_structures(structures, DeNS(prob=0.8), rows=2)
    assert len(figure.axes) == 8
    assert [figure.axes[0].get_title(), figure.axes[1].get_title()[:5]] == ["original", "epoch"]
