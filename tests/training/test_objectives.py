"""Objectives through the whole trainer: batches of other sizes, outputs of their own, labels that are missing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from rank_runs import assert_same_run, final_state
from samples import PLAIN_MODEL, write_lmdb

from dens_plugin.fields import rows_of
from dens_plugin.objectives.ndem import AUXILIARY_FORCES
from dens_plugin.testing import random_structure
from dens_plugin.training.history import FILE_NAME, read_history

NOISE_HEAD = {"module": "dens_plugin.NoiseHead"}
HEADS = {
    "energy": {"module": "dens_plugin.EnergyHead"},
    "forces": {"module": "dens_plugin.ForceHead"},
    "noise": NOISE_HEAD,
    AUXILIARY_FORCES: {**NOISE_HEAD, "output_name": AUXILIARY_FORCES},
}
RUNS = {
    "dens": ({"name": "dens", "prob": 0.8}, ("energy", "forces", "noise")),
    "dens beside the clean": ({"name": "dens", "prob": 0.8, "keep_labels": True}, ("energy", "forces", "noise")),
    "dropped labels": ({"name": "dens", "prob": 0.8, "only_drop_labels": True}, ("energy", "forces", "noise")),
    "ndem": ({"name": "ndem"}, ("energy", "forces", AUXILIARY_FORCES)),
    "noisy nodes": ({"name": "noisy_nodes"}, ("energy", "forces", "noise")),
    "noisy nodes, two passes": ({"name": "noisy_nodes", "keep_labels": True}, ("energy", "forces", "noise")),
    "pretrain": ({"name": "pretrain"}, ("noise",)),
}


def with_objective(config, objective, heads):
    """The config with another objective, and a tiny EquiformerV2 with just the heads that it needs."""
    model = copy.deepcopy(PLAIN_MODEL)
    model["backbone"]["model"] = "dens_plugin.EquiformerV2DeNS"
    model["heads"] = {name: dict(HEADS[name]) for name in heads}
    return {**config, "model": model, "task": {"objective": objective}, "evaluation_metrics": {}}


def history(trainer, split):
    rows = read_history(Path(trainer.config["cmd"]["checkpoint_dir"]) / FILE_NAME)
    return [row for row in rows if row["split"] == split]


@pytest.mark.parametrize("name", RUNS)
def test_trains_and_validates_its_own_outputs(config, build, name):
    objective, heads = RUNS[name]
    trainer = build(with_objective(config, objective, heads))
    trainer.train(disable_eval_tqdm=True)
    own = trainer.objective.outputs[0].name
    (row,) = history(trainer, "val")
    assert (f"{own}_relative" in row) == (name != "dropped labels")
    assert ("forces_mae" in row) == (name != "pretrain")
    train = history(trainer, "train")
    assert len(train) == 6
    assert all(row["loss"] > 0 for row in train)
    assert (trainer._folder / "best_checkpoint.pt").exists()


@pytest.mark.parametrize("name", ["ndem", "pretrain"])
def test_a_resumed_run_is_the_uninterrupted_one(config, build, name):
    objective, heads = RUNS[name]
    config = with_objective(config, objective, heads)
    config["optim"] |= {"max_epochs": 2, "checkpoint_every": 4}
    whole, first = build(config), build({**config, "optim": {**config["optim"], "max_epochs": 2}})
    whole.train(disable_eval_tqdm=True)
    loss_of = first.loss
    first.loss = lambda outputs, batch: loss_of(outputs, batch) if first.step < 7 else pytest.fail("stop")
    with pytest.raises(pytest.fail.Exception):
        first.train(disable_eval_tqdm=True)
    second = build(config)
    second.load_checkpoint(str(first._folder / "checkpoint.pt"))
    assert second.step == 4
    second.train(disable_eval_tqdm=True)
    assert_same_run(final_state(second), final_state(whole))


def test_noise_of_validation_is_the_same_in_every_evaluation(config, build):
    trainer = build(config)
    first, second = ([batch.pos for batch in trainer._corrupted_loader] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    clean = [batch.pos for batch in trainer.val_loader]
    assert not all(torch.equal(a, b) for a, b in zip(first, clean, strict=True))
    assert all(rows_of(batch) is None for batch in trainer.val_loader)


def test_predicting_zero_has_a_relative_error_of_one(config, build):
    trainer = build(config)
    forward = trainer._forward
    trainer._forward = lambda batch: {name: torch.zeros_like(value) for name, value in forward(batch).items()}
    assert trainer._corrupted_metrics(trainer._corrupted_loader)["noise_relative"]["metric"] == pytest.approx(1.0)


def test_pre_training_needs_no_labels_and_keeps_the_best_noise(config, build, tmp_path):
    for split in ("train", "val"):
        structures = [random_structure(5, seed=index, sid=index) for index in range(6)]
        for structure in structures:
            del structure.energy, structure.forces
        config["dataset"][split]["src"] = str(write_lmdb(tmp_path / split, structures))
    trainer = build(with_objective(config, {"name": "pretrain", "sigma": 0.1}, ("noise",)))
    trainer.train(disable_eval_tqdm=True)
    assert trainer.best_val_metric == min(row["noise_mae"] for row in history(trainer, "val"))


@pytest.mark.parametrize("objective", [{"name": "s2ef"}, {"name": "noisy_nodes"}, {"name": "ndem"}])
def test_energies_without_forces_train(config, build, tmp_path, objective):
    for split in ("train", "val"):
        structures = [random_structure(5, seed=index, sid=index) for index in range(6)]
        for structure in structures:
            del structure.forces
        config["dataset"][split]["src"] = str(write_lmdb(tmp_path / split, structures))
    config["outputs"] = {"energy": {"level": "system"}}
    config["loss_functions"] = config["loss_functions"][:1]
    own = {"noisy_nodes": ("noise",), "ndem": (AUXILIARY_FORCES,)}.get(objective["name"], ())
    config = with_objective(config, objective, ("energy", *own))
    if not own:
        config["model"]["backbone"]["model"] = "equiformer_v2_backbone"
        config["model"]["heads"]["energy"]["module"] = "equiformerV2_scalar_head"
    trainer = build(config)
    trainer.train(disable_eval_tqdm=True)
    (row,) = history(trainer, "val")
    assert trainer.best_val_metric == row["energy_mae"]
    assert "forces_mae" not in row


def test_a_metric_of_a_label_that_the_objective_does_not_use_is_refused(config, build):
    config = with_objective(config, {"name": "pretrain"}, ("noise",))
    config["evaluation_metrics"] = {"primary_metric": "forces_mae", "metrics": {"forces": ["mae"]}}
    with pytest.raises(ValueError, match="'forces_mae' is not computed; did you mean 'noise_mae'"):
        build(config)
