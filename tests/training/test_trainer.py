from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from samples import PLAIN_MODEL, write_lmdb
from torch_geometric.data import Batch, Data

from dens_plugin.backbones.key_map import to_plain_keys
from dens_plugin.checks.dataset import require_distinct
from dens_plugin.fields import CORRUPTION, NOISE, ROWS, Corruption, rows_of
from dens_plugin.testing import random_structure
from dens_plugin.training.history import FILE_NAME, read_history
from dens_plugin.training.loop import TrainingLoop
from dens_plugin.training.optimizer import spare_from_decay
from dens_plugin.training.step_random import seed_step


class SeededHost(EquiformerV2ForcesTrainer):
    """fairchem's trainer with the random numbers of ours, a function of the step, and the authors' weight decay."""

    def load_optimizer(self):
        spare_from_decay(self._unwrapped_model)
        super().load_optimizer()

    def _forward(self, batch):
        seed_step(0, self.step, "train" if self.model.training else "val")
        return super()._forward(batch)


def trained_beside_the_host(config, build, force_head, *, fast, fused):
    """Weights after an epoch of ours with p = 0 and of fairchem's trainer with its plain model, from one seed."""
    model = copy.deepcopy(PLAIN_MODEL)
    model["backbone"] |= {"model": "dens_plugin.EquiformerV2DeNS", "fast": fast}
    model["heads"] |= {"forces": {"module": force_head}, "noise": {"module": "dens_plugin.NoiseHead"}}
    task = {"objective": {"name": "dens", "prob": 0}}
    config["optim"]["optimizer_params"]["fused"] = fused  # true in ours by default
    ours = build({**config, "model": model, "task": task})
    host = build({**config, "model": copy.deepcopy(PLAIN_MODEL)}, SeededHost)
    for trainer in (ours, host):
        trainer.train(disable_eval_tqdm=True)
    return to_plain_keys(ours.model.state_dict()), to_plain_keys(host.model.state_dict())


def test_zero_probability_is_fairchems_trainer_bit_for_bit(config, build):
    """With fairchem's heads and way of stepping: same data order, loss and steps, given its edge frames and dropout."""
    found, expected = trained_beside_the_host(config, build, "equiformerV2_vector_head", fast=False, fused=False)
    assert found.keys() == expected.keys()
    assert not [key for key in expected if not torch.equal(found[key], expected[key])]


def test_zero_probability_is_fairchems_trainer_to_rounding_with_trimmed_heads(config, build):
    """A trimmed head leaves out edges that add zeros, and so sums in another order, as the fast path does."""
    found, expected = trained_beside_the_host(config, build, "dens_plugin.ForceHead", fast=True, fused=True)
    for key, value in expected.items():
        assert torch.allclose(found[key].double(), value.double(), atol=2e-4), key


def test_training_writes_checkpoints_and_history(config, build):
    trainer = build(config)
    trainer.train(disable_eval_tqdm=True)
    folder = trainer.config["cmd"]["checkpoint_dir"]
    assert {"checkpoint.pt", "best_checkpoint.pt", FILE_NAME} <= {path.name for path in Path(folder).iterdir()}
    rows = read_history(Path(folder) / FILE_NAME)
    train = [row for row in rows if row["split"] == "train"]
    assert len(train) == 6
    seen = set().union(*train)
    assert {"loss", "forces_mae", "noise_mae", "forces_uncorrupted_mae", "energy_corrupted_mae", "grad_norm"} <= seen
    assert [row["step"] for row in rows if row["split"] == "val"] == [6]


def test_a_run_shorter_than_an_evaluation_is_saved(config, build):
    config["optim"]["eval_every"] = 400
    trainer = build(config)
    trainer.train(disable_eval_tqdm=True)
    saved = torch.load(Path(trainer.config["cmd"]["checkpoint_dir"]) / "checkpoint.pt", weights_only=False)
    assert saved["step"] == 6


def test_loss_terms_are_counted_once(config, build):
    """The sum of three means, written out by hand."""
    config["task"]["objective"] = {"name": "dens", "prob": 1.0, "corrupt_ratio": 0.6, "coefficient": 7}
    trainer = build(config)
    batch = next(iter(trainer.train_loader))
    trainer.model.eval()
    out = trainer._forward(batch)
    corruption, free = batch[CORRUPTION], batch.fixed == 0
    energy = (out["energy"].view(-1) - (batch.energy - 0.3) / 2.0).abs().mean()
    force_errors = (out["forces"] - batch.forces / 2.0).norm(dim=-1)[free & ~corruption.mask]
    noise_errors = (out[NOISE] - corruption.noise / 0.1).norm(dim=-1)[corruption.mask]
    expected = 2 * energy + (100 * force_errors.sum() + 7 * noise_errors.sum()) / free.sum()
    assert torch.allclose(trainer._compute_loss(out, batch), expected, rtol=1e-6)


def test_perfect_prediction_has_no_loss(config, build):
    trainer = build(config)
    batch = next(iter(trainer.train_loader))
    outputs = {
        "energy": ((batch.energy - 0.3) / 2.0)[:, None],
        "forces": batch.forces / 2.0,
        NOISE: trainer.objective.targets(batch)[NOISE],
    }
    assert trainer._compute_loss(outputs, batch).abs() < 1e-5


def golden_cases(golden):
    return golden("dens_loss_terms.pt")


@pytest.mark.parametrize("case", range(6))
def test_golden_loss(golden, config, build, case):
    """Six cases of the authors' trainer: scales, all atoms corrupted, fixed atoms included, other settings."""
    reference = golden_cases(golden)[case]
    settings, labels, predicted = reference["settings"], reference["batch"], reference["pred"]
    config["task"]["objective"] = {
        "name": "dens",
        "sigma": settings["noise_std"],
        "coefficient": settings["denoising_pos_coefficient"],
        "corrupt_ratio": settings["corrupt_ratio"],
        "all_atoms": settings["all_atoms"],
    }
    config["outputs"]["forces"]["train_on_free_atoms"] = settings["train_on_free_atoms"]
    config["dataset"]["train"]["transforms"]["normalizer"] = {
        "energy": {"mean": settings["energy_mean"], "stdev": settings["energy_std"]},
        "forces": {"mean": settings["forces_mean"], "stdev": settings["forces_std"]},
    }
    for loss, name in zip(config["loss_functions"], ("energy", "force"), strict=True):
        next(iter(loss.values()))["coefficient"] = settings[f"{name}_coefficient"]
    trainer = build(config)
    batch = as_prepared(labels, trainer.objective, settings["noise_std"])
    outputs = {"energy": predicted["energy"], "forces": predicted["forces"], NOISE: predicted["forces"]}
    loss = trainer._compute_loss(outputs, batch)
    assert loss.item() == pytest.approx(reference["official_total"], rel=1e-6)


def as_prepared(labels, objective, sigma):
    """The reference's batch with its own mask and noise, as a loader would hand it over."""
    sizes = labels["natoms"].tolist()
    columns = zip(labels["pos"].split(sizes), labels["fixed"].split(sizes), labels["forces"].split(sizes), strict=True)
    batch = Batch.from_data_list([Data(pos=pos, fixed=fixed, forces=forces) for pos, fixed, forces in columns])
    batch.natoms, batch.energy = labels["natoms"], labels["energy"]
    mask = (
        labels["noise_mask"] if labels["noise_mask"] is not None else torch.ones_like(labels["fixed"], dtype=torch.bool)
    )
    batch[CORRUPTION] = Corruption(mask, labels["noise_vec"], torch.full((len(sizes),), sigma), labels["forces"])
    batch[ROWS] = objective.rows(batch)
    return batch


def test_validation_batches_are_never_corrupted(config, build):
    trainer = build(config)
    for batch in trainer.val_loader:
        assert CORRUPTION not in batch
        assert not rows_of(batch)


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 4), (2, 2), (2, 4)])
def test_noise_does_not_depend_on_workers_or_batch_size(config, build, workers, batch_size):
    """The corrupted positions of every structure are those of one process with batches of two."""
    expected = positions(build(config).train_loader)
    config["optim"] |= {"num_workers": workers, "batch_size": batch_size}
    found = positions(build(config).train_loader)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[sid], expected[sid]) for sid in expected)


def test_loader_workers_go_before_those_that_fairchem_resets(config, build):
    config["optim"] |= {"num_workers": 0, "loader_workers": 1}
    loader = build(config).train_loader
    assert loader.num_workers == 1
    assert loader.multiprocessing_context.get_start_method() == "fork"


@pytest.mark.parametrize("fixed", [False, True])
def test_predictions_hold_fixed_atoms_if_asked(config, build, fixed):
    config["dataset"]["test"] = dict(config["dataset"]["val"])
    config["task"]["predict_fixed_atoms"] = fixed
    trainer = build(config)
    atoms = sum(len(batch.pos) if fixed else int((batch.fixed == 0).sum()) for batch in trainer.val_loader)
    trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
    with np.load(Path(trainer.config["cmd"]["results_dir"]) / "ocp_predictions.npz") as found:
        assert found["forces"].shape == (atoms, 3)
        assert found["forces"].dtype == np.float32


def test_predictions_of_one_identifier_are_refused(config, build, tmp_path):
    """Two files that both count from 0: fairchem keeps one prediction of each pair."""
    folder = write_lmdb(tmp_path / "both", [random_structure(4, seed=seed, sid=seed) for seed in range(2)])
    shutil.copy(folder / "data.0000.lmdb", folder / "data.0001.lmdb")
    np.savez(folder / "metadata.npz", natoms=np.full(4, 4))
    config["dataset"]["test"] = {"src": str(folder)}
    with pytest.raises(
        ValueError, match=r"2 identifiers more than once, first '0_0' at '.*lmdb', structure 0 and .*lmdb', structure 0"
    ):
        build(config)


def test_predictions_need_identifiers(config, build, tmp_path):
    structure = random_structure(4)
    del structure.sid
    config["dataset"]["test"] = {"src": str(write_lmdb(tmp_path / "nameless", [structure]))}
    with pytest.raises(ValueError, match=r"structure 0 has no `sid`, by which its prediction could be found"):
        build(config)


def test_predictions_of_overlapping_atoms_are_doubted(config, build, tmp_path, caplog):
    structure = random_structure(4)
    structure.pos[1] = structure.pos[0] + 1e-3
    config["dataset"]["test"] = {"src": str(write_lmdb(tmp_path / "close", [structure]))}
    trainer = build(config)
    trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
    assert "structure 0: atoms 0 and 1 at one place (less than 0.4 Å): predictions for that" in caplog.text


def test_noise_changes_from_epoch_to_epoch(config, build):
    trainer = build(config)
    first = positions(trainer.train_loader)
    trainer.train_sampler.set_epoch_and_start_iteration(1, 0)
    second = positions(trainer.train_loader)
    assert any(not torch.equal(first[sid], second[sid]) for sid in first)


def positions(loader):
    found = {}
    for batch in loader:
        found.update(zip(batch.sid.tolist(), batch.pos.split(batch.natoms.tolist()), strict=True))
    return found


def test_accumulated_steps_are_steps_on_the_mean_gradient(config, build):
    """Two batches and one step: the gradient of the mean of their losses."""
    config["optim"] |= {"accumulate_steps": 2, "clip_grad_norm": 1e9}
    config["model"] |= {"alpha_drop": 0.0, "drop_path_rate": 0.0}
    trainer = build(config)
    trainer.ema = None
    batches = [copy.copy(batch) for _, batch in zip(range(2), trainer.train_loader, strict=False)]
    for trainer.step, batch in enumerate(batches, start=1):
        seed_step(0, trainer.step, "train")
        (trainer._compute_loss(trainer._forward(batch), batch) / 2).backward()
    expected = {name: value.grad.clone() for name, value in trainer.model.named_parameters()}
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    loop = TrainingLoop(trainer)
    for trainer.step, batch in enumerate(batches, start=1):
        loop.optimise(batch)
        moved = any(not torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
        assert moved == (trainer.step == 2)
    for name, value in trainer.model.named_parameters():
        assert torch.allclose(value.grad, expected[name], atol=1e-6)


def test_bf16_trains(config, build):
    config["optim"]["autocast"] = "bf16"
    trainer = build(config)
    batch = next(iter(trainer.train_loader))
    assert all(value.dtype == torch.float32 for value in trainer._forward(batch).values())
    trainer.step = 1
    TrainingLoop(trainer).optimise(batch)
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters())


@pytest.mark.parametrize("settings", [{"prob": 1.0, "corrupt_ratio": None}, {"prob": 0}])
def test_trains_when_all_or_none_are_corrupted(config, build, settings):
    config["task"]["objective"] = {"name": "dens", **settings}
    build(config).train(disable_eval_tqdm=True)


def test_resumes_from_a_checkpoint(config, build):
    first = build(config)
    first.train(disable_eval_tqdm=True)
    path = first.save(checkpoint_file="checkpoint.pt")
    config["optim"]["max_epochs"] = 2
    second = build(config)
    second.load_checkpoint(path)
    assert second.step == 6
    second.train(disable_eval_tqdm=True)
    assert second.step == 12


def test_warm_start_from_plain_equiformer(config, build):
    """Backbone, energy and force head come from the plain model, the rest stays as initialised."""
    host = build({**config, "model": copy.deepcopy(PLAIN_MODEL)}, EquiformerV2ForcesTrainer)
    path = host.save(checkpoint_file="plain.pt")
    config["task"]["warm_start"] = path
    trainer = build(config, seed=5)
    found = to_plain_keys(trainer.model.state_dict())
    assert all(torch.equal(found[key], value) for key, value in host.model.state_dict().items())
    assert trainer.ema is not None
    assert trainer.step == 0


def test_warm_start_from_another_architecture_is_refused(config, build):
    path = build(config).save(checkpoint_file="other.pt")
    config["task"]["warm_start"] = path
    config["model"]["num_layers"] = 2
    with pytest.raises(ValueError, match="does not fit the model: it lacks"):
        build(config)


def test_warm_start_says_where_scales_differ(config, build, caplog):
    path = build(config).save(checkpoint_file="before.pt")
    config["task"]["warm_start"] = {"path": path, "new_heads": ["noise"]}
    caplog.set_level("INFO")
    build(config)
    assert "took backbone, force encoding, head energy, head forces; drew anew head noise;" in caplog.text
    assert "until training changes them" not in caplog.text
    config["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"] = 7.0
    build(config)
    assert "The normaliser of `forces` has mean 0 and stdev 7 here" in caplog.text
    assert "set dataset.train.transforms.normalizer.forces to {mean: 0" in caplog.text


def test_a_checkpoint_needs_no_file_of_its_normaliser(config, build, tmp_path):
    for name, stdev in (("energy", 2.0), ("forces", 3.0)):
        np.savez(tmp_path / f"{name}.npz", mean=np.float32(0.5), rmsd=np.float32(stdev))
    files = {name: {"file": str(tmp_path / f"{name}.npz")} for name in ("energy", "forces")}
    config["dataset"]["train"]["transforms"]["normalizer"] = files
    path = build(config).save(checkpoint_file="checkpoint.pt")
    saved = torch.load(path, weights_only=False)["config"]["dataset"]["transforms"]["normalizer"]
    assert saved == {"energy": {"mean": 0.5, "rmsd": 2.0}, "forces": {"mean": 0.5, "rmsd": 3.0}}


def test_warm_up_shorter_than_a_step_takes_one(config, build, caplog):
    config["optim"]["scheduler_params"]["warmup_epochs"] = 0.01
    assert build(config).scheduler.get_lr() > 0
    assert "less than a step" in caplog.text


def test_runs_never_share_a_folder(config, build):
    assert build(config).timestamp_id != build(config).timestamp_id


def test_checkpoint_of_another_architecture_is_refused(config, build):
    path = build(config).save(checkpoint_file="other.pt")
    config["model"]["num_layers"] = 2
    with pytest.raises(ValueError, match="does not fit the config"):
        build(config).load_checkpoint(path)


def test_checkpoint_of_another_network_is_refused_by_the_names_of_both(config, build, tmp_path):
    torch.save({"state_dict": {"backbone.message_layers.0.x_proj.0.weight": torch.zeros(1)}}, tmp_path / "painn.pt")
    with pytest.raises(ValueError, match="it holds weights of PaiNN, and the model is EquiformerV2"):
        build(config).load_checkpoint(str(tmp_path / "painn.pt"))


def test_contradictions_to_a_checkpoint_are_logged(config, build, caplog):
    """A cutoff changes the numbers and no shape."""
    path = build(config).save(checkpoint_file="other.pt")
    config["model"]["max_radius"] = 3.0
    build(config).load_checkpoint(path)
    assert "model.max_radius is 3.0 in the config and 4.0 in the checkpoint" in caplog.text


def test_history_survives_a_cut_line(tmp_path):
    path = tmp_path / FILE_NAME
    rows = [{"split": "val", "step": 1, "forces_mae": 2.0}, {"split": "val", "step": 1, "forces_mae": 1.0}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"split": "va')
    assert read_history(path) == [rows[1]]


def with_dens_backbone(modules):
    """A tiny model of which the test chooses all heads but that of the energy."""
    model = copy.deepcopy(PLAIN_MODEL)
    model["backbone"]["model"] = "dens_plugin.EquiformerV2DeNS"
    model["heads"] = {"energy": model["heads"]["energy"]}
    model["heads"] |= {name: {"module": module} for name, module in modules.items() if module is not None}
    return model


class TestBadInput:
    @pytest.mark.parametrize(
        ("task", "message"),
        [
            ({}, "needs an objective: add"),
            ({"objective": {"name": "denz"}}, "unknown objective 'denz'.*did you mean 'dens'"),
            ({"objective": {"name": "no.such.Thing"}}, "cannot be imported"),
            ({"objective": "dens"}, "task.objective must be a block"),
            ({"objective": {"name": "s2ef", "prob": 0.5}}, "unknown key 'prob'"),
            (
                {"objective": {"name": "s2ef"}},
                "predicts `noise`, which the objective does not use",
            ),
        ],
    )
    def test_objective(self, config, build, task, message):
        with pytest.raises(ValueError, match=message):
            build({**config, "task": task})

    @pytest.mark.parametrize(("key", "value"), [("use_s2_act_attn", True), ("mmax_list", [9]), ("lmax_list", 2)])
    def test_settings_that_make_no_model(self, config, build, key, value):
        config["model"] = copy.deepcopy(config["model"])
        config["model"].get("backbone", config["model"])[key] = value
        with pytest.raises(ValueError, match="no model can be built from the settings under `model`: "):
            build(config)

    def test_model_without_noise_head(self, config, build):
        message = r"the model has no head for it; add `noise: {module: dens_plugin.NoiseHead, output_name: noise"
        with pytest.raises(ValueError, match=message):
            build({**config, "model": copy.deepcopy(PLAIN_MODEL)})

    @pytest.mark.parametrize(
        ("heads", "message"),
        [
            ({"forces": "dens_plugin.NoiseHead"}, "model.heads.forces is a NoiseHead, which predicts `noise`"),
            ({"other": "dens_plugin.ForceHead"}, "model.heads.forces and model.heads.other both predict `forces`"),
            ({"forces": None}, "the config trains on `forces`, and the model predicts energy, noise; add a head"),
        ],
    )
    def test_heads(self, config, build, heads, message):
        modules = {"forces": "dens_plugin.ForceHead", "noise": "dens_plugin.NoiseHead"} | heads
        model = with_dens_backbone(modules)
        with pytest.raises(ValueError, match=message):
            build({**config, "model": model})

    def test_nested_outputs(self, config, build):
        model = with_dens_backbone({"forces": "dens_plugin.ForceHead", "noise": "dens_plugin.NoiseHead"})
        model["pass_through_head_outputs"] = False
        with pytest.raises(ValueError, match=r"set model\.pass_through_head_outputs: true"):
            build({**config, "model": model})

    def test_level_of_an_output(self, config, build):
        config["outputs"]["forces"]["level"] = "system"
        with pytest.raises(ValueError, match=r"outputs.forces.level, which is 'system', must be"):
            build(config)

    def test_model_without_force_encoding(self, config, build):
        model = copy.deepcopy(PLAIN_MODEL)
        model["heads"]["noise"] = {"module": "equiformerV2_vector_head", "output_name": "noise"}
        with pytest.raises(ValueError, match=r"ill-posed; use the backbone dens_plugin\.EquiformerV2DeNS, or set"):
            build({**config, "model": model})

    def test_missing_data(self, config, build):
        config["dataset"]["val"]["src"] = "nowhere/val"
        with pytest.raises(FileNotFoundError, match=r"dataset.val.src: there is no 'nowhere/val'"):
            build(config)

    def test_scale_of_zero(self, config, build):
        config["dataset"]["train"]["transforms"]["normalizer"]["energy"]["stdev"] = 0.0
        with pytest.raises(ValueError, match=r"normalizer.energy.stdev must be above 0, got 0.0"):
            build(config)

    def test_metric_that_is_not_computed(self, config, build):
        config["evaluation_metrics"]["primary_metric"] = "forces_mea"
        with pytest.raises(ValueError, match="'forces_mea' is not computed; did you mean 'forces_mae'"):
            build(config)

    def test_head_of_another_network(self, config, build):
        model = copy.deepcopy(PLAIN_MODEL)
        model["heads"]["forces"]["module"] = "dens_plugin.ESCNForceHead"
        with pytest.raises(ValueError, match="a head does not fit the backbone"):
            build({**config, "model": model})

    def test_flipped_bit_in_weights_to_start_from(self, config, build):
        path = Path(build(config).save(checkpoint_file="other.pt"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        config["task"]["warm_start"] = str(path)
        with pytest.raises(ValueError, match=r"other.pt' is damaged or was cut short \(the checksum"):
            build(config)

    def test_one_lmdb_for_two_splits(self, config):
        config["dataset"]["val"]["src"] = config["dataset"]["train"]["src"]
        with pytest.raises(
            ValueError, match=r"dataset.train.src and dataset.val.src are both .* only once in a process"
        ):
            require_distinct(config["dataset"])

    def test_balancing_without_sizes(self, config, build, tmp_path):
        (Path(config["dataset"]["train"]["src"]) / "metadata.npz").rename(tmp_path / "away.npz")
        config["optim"]["load_balancing"] = "atoms"
        try:
            with pytest.raises(ValueError, match=r"needs the training set's metadata.npz"):
                build(config)
        finally:
            (tmp_path / "away.npz").rename(Path(config["dataset"]["train"]["src"]) / "metadata.npz")

    def test_truncated_lmdb(self, config, build, tmp_path, data):
        broken = shutil.copytree(data / "train", tmp_path / "broken")
        file = broken / "data.0000.lmdb"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        config["dataset"]["train"]["src"] = str(broken)
        with pytest.raises(ValueError, match=r"data.0000.lmdb"):
            build(config)

    def test_missing_label(self, config, build):
        config["dataset"]["train"]["key_mapping"] = {"forces": "force"}
        with pytest.raises(ValueError, match="the training set has no `forces`"):
            build(config)

    def test_nan_label_names_the_structure(self, config, build, tmp_path):
        structures = [random_structure(5, seed=index, sid=100 + index) for index in range(4)]
        structures[2].forces[1, 1] = float("nan")
        config["dataset"]["train"]["src"] = str(write_lmdb(tmp_path / "nan", structures))
        with pytest.raises(ValueError, match=r"lmdb', structure 2 .*sid 102, fid 0\): `forces` is NaN or infinite"):
            list(build(config).train_loader)

    def test_nan_label_of_a_validation_structure_is_named(self, config, build, tmp_path):
        structures = [random_structure(5, seed=index, sid=100 + index) for index in range(4)]
        structures[2].energy = float("nan")
        config["dataset"]["val"]["src"] = str(write_lmdb(tmp_path / "nan", structures))
        trainer = build(config)
        with pytest.raises(ValueError, match=r"lmdb', structure 2 .*sid 102, fid 0\): `energy` is NaN or infinite"):
            trainer.validate("val", disable_tqdm=True)

    def test_validation_set_is_looked_at_before_training(self, config, build, tmp_path):
        unlabelled = random_structure(5)
        del unlabelled.energy
        config["dataset"]["val"]["src"] = str(write_lmdb(tmp_path / "unlabelled", [unlabelled]))
        with pytest.raises(ValueError, match="the validation set has no `energy` to compare predictions with, only "):
            build(config)
        empty = write_lmdb(tmp_path / "none", [])
        (empty / "metadata.npz").unlink()
        config["dataset"]["val"]["src"] = str(empty)
        with pytest.raises(ValueError, match="holds no structures"):
            build(config)

    def test_element_that_the_model_does_not_know(self, config, build, tmp_path):
        structure = random_structure(5, sid=7)
        structure.atomic_numbers[2] = 95
        config["dataset"]["train"]["src"] = str(write_lmdb(tmp_path / "heavy", [structure]))
        with pytest.raises(ValueError, match=r"sid 7, fid 0\): the model knows the elements 1 to 89, and it has 95"):
            build(config)

    def test_forces_of_another_number_of_atoms(self, config, build, tmp_path):
        structures = [random_structure(5, seed=index, sid=100 + index) for index in range(4)]
        structures[2].forces = structures[2].forces[:-1]
        config["dataset"]["train"]["src"] = str(write_lmdb(tmp_path / "short", structures))
        with pytest.raises(ValueError, match=r"sid 102, fid 0\): .*forces \(4, 3\) for \(5, 3\)"):
            list(build(config).train_loader)

    def test_field_that_only_some_structures_have(self, config, build, tmp_path):
        structures = [random_structure(5, seed=index, sid=100 + index) for index in range(4)]
        for structure in structures[:2]:
            structure.charge = 1
        config["dataset"]["train"]["src"] = str(write_lmdb(tmp_path / "mixed", structures))
        config["optim"]["batch_size"] = 4
        with pytest.raises(ValueError, match="only some structures have `charge`"):
            list(build(config).train_loader)

    def test_diverged_run_names_step_and_structures(self, config, build):
        config["optim"]["max_bad_steps"] = 2
        trainer = build(config)
        torch.nn.init.constant_(next(trainer.model.parameters()), float("nan"))
        with pytest.raises(FloatingPointError, match=r"the loss is nan in step 3, with id 0_\d+, sid \d+, fid 0"):
            trainer.train(disable_eval_tqdm=True)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"autocast": "fp8"}, "must be 'bf16'"),
            ({"accumulate_steps": 0}, "at least 1"),
            ({"accumulate_steps": 4, "eval_every": 6}, "must be a multiple"),
        ],
    )
    def test_options(self, config, build, options, message):
        config["optim"] |= options
        with pytest.raises(ValueError, match=message):
            build(config)

    def test_numbers_that_yaml_took_for_text(self, config, build):
        """As 1e-3 without a dot, or what stands in quotes, wherever a number may stand."""
        plain = build(config)
        config["optim"] |= {"lr_initial": " 0.001", "optimizer_params": {"weight_decay": "1e-3"}}
        config["optim"]["scheduler_params"] |= {"lr_min_factor": "1e-2", "warmup_factor": "2e-1"}
        config["dataset"]["train"]["transforms"]["normalizer"]["energy"]["stdev"] = "2e0"
        text = build(config)
        assert text.scheduler.get_lr() == plain.scheduler.get_lr()
        config["optim"]["scheduler_params"]["warmup_factor"] = 1
        assert build(config).scheduler.get_lr() == 1e-3
        assert text.normalizers["energy"].rmsd == plain.normalizers["energy"].rmsd

    def test_broken_checkpoint(self, config, build, tmp_path):
        path = tmp_path / "cut.pt"
        path.write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match="was cut short"):
            build(config).load_checkpoint(str(path))


def test_a_start_that_fails_leaves_no_folders(config, build, tmp_path):
    """Neither when the model cannot be trained on what is asked for, nor when a checkpoint is of another one."""
    path = build(config).save(checkpoint_file="other.pt")
    before = {folder for folder in tmp_path.glob("*/**/") if "-test" in folder.name}
    bad = copy.deepcopy(config) | {"model": copy.deepcopy(PLAIN_MODEL)}
    with pytest.raises(ValueError, match="no head for it"):
        build(bad)
    config["model"]["num_layers"] = 2
    with pytest.raises(ValueError, match=r"num_layers: 1 in the checkpoint, 2 now"):
        build(config).load_checkpoint(path)
    assert {folder for folder in tmp_path.glob("*/**/") if "-test" in folder.name} == before
    assert len(before) == 3


def test_a_failed_start_leaves_what_a_run_has_written(config, build, tmp_path):
    first = build(config, timestamp_id="again")
    first.save()
    config["model"]["num_layers"] = 0.5
    with pytest.raises(ValueError, match="model"):
        build(config, timestamp_id="again")
    assert (tmp_path / "checkpoints" / "again" / "checkpoint.pt").is_file()
    assert (tmp_path / "logs" / "tensorboard" / "again").is_dir()
