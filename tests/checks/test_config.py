"""A whole config with one impossible value: an error of one line, and no traceback."""

from __future__ import annotations

import copy

import pytest

import dens_plugin.training.trainer  # noqa: F401
from dens_plugin.checks.config import require_sound
from dens_plugin.checks.dataset import require_files
from dens_plugin.checks.schema import require_read_keys

STRANGE = (None, [], {}, "text", -1, [None], {"a": 1}, float("nan"))


def paths(block, path=()):
    """Every setting of a config but those of its model, of which there are many alike."""
    items = block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ()
    for key, value in items:
        yield (*path, key)
        if (*path, key) != ("model",):
            yield from paths(value, (*path, key))


def changed(config, path, value):
    config = copy.deepcopy(config)
    block = config
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    return config


def refusal(config):
    """What is said of a config; empty where it passes."""
    try:
        require_sound(config)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


def test_every_setting_as_something_strange(config):
    assert not refusal(config)
    told = [refusal(changed(config, path, value)) for path in paths(config) for value in STRANGE]
    assert sum(map(bool, told)) > 400
    assert not [text for text in told if "\n" in text]


@pytest.mark.parametrize(
    ("mode", "split"), [("train", "train"), ("validate", "val"), ("predict", "test")], ids=lambda text: text
)
def test_a_mode_needs_its_structures(config, mode, split):
    config = copy.deepcopy(config)
    config["dataset"][split] = None
    with pytest.raises(ValueError, match=rf"mode '{mode}' needs structures: set dataset.{split}.src"):
        require_sound(config | {"mode": mode})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dataset.val.src", None, r"dataset.val.src must be a path .*--dataset.val=null"),
        ("dataset.train.src", 3, r"dataset.train.src must be a path or a list of paths, got 3"),
        ("dataset.train.first_n", -3, r"dataset.train.first_n must be a whole number above 0, got -3; leave it out"),
        ("dataset.val.sample_n", 0, r"dataset.val.sample_n must be a whole number above 0, got 0"),
        ("dataset.val.val_split_settings", {"first_n": 2.5}, r"val.val_split_settings.first_n must be .*, got 2.5"),
        ("dataset.train.splits", {"train": {"sample_n": -1}}, r"train.splits.train.sample_n must be .*, got -1"),
        ("dataset.train.transforms", None, r"dataset.train.transforms must be a block"),
        (
            "dataset.train.transforms.normalizer.energy.stdev",
            0.0,
            r"normalizer.energy.stdev must be above 0, got 0.0",
        ),
        ("dataset.train.transforms.normalizer.energy.mean", None, r"normalizer.energy needs `mean` and `stdev`, or a"),
        ("outputs.forces.train_on_free_atoms", "false", r"must be true or false .*got 'false'"),
        ("outputs.energy.level", None, r"unknown outputs.energy.level 'None'; allowed are atom, system"),
        ("outputs.energy", {}, r"outputs.energy lacks `level`"),
        ("evaluation_metrics", None, r"evaluation_metrics must be a block"),
        ("evaluation_metrics.primary_metric", ["forces_mae"], r"primary_metric must be a name, as forces_mae"),
        ("loss_functions", None, r"loss_functions must be a list"),
        ("optim.scheduler", ["StepLR"], r"unknown optim.scheduler '\['StepLR'\]'"),
        ("optim.optimizer", "Adamm", r"unknown optim.optimizer 'Adamm'; did you mean 'Adam'\?"),
        ("task", 3, r"task must be a block"),
        ("model", {"name": "hydra", "heads": ["energy"]}, r"model.heads must be a block"),
        ("model", {"name": "hydra", "heads": "energy"}, r"model.heads must be a block"),
        ("dataset.train.transforms.normalizer.energy", {"file": "mean.yml"}, r"energy.file must be a .pt or .npz file"),
        ("optim.force_coefficient", 7, r"not read where a config has `loss_functions`: set loss_functions.forces.c"),
        ("optim.loss_energy", "mse", r"optim.loss_energy is not read .* set loss_functions.energy.fn instead"),
        ("task.primary_metric", "energy_mae", r"set evaluation_metrics.primary_metric instead"),
        ("task.eval_on_free_atoms", False, r"set outputs.forces.eval_on_free_atoms instead"),
        ("task.objective.name", ["dens"], r"unknown objective"),
        ("dataset.train.target_std", 3.0, r"dataset.train.target_std is not read .*normalizer.energy.stdev instead"),
        ("dataset.train.grad_target_mean", 1.0, r"set dataset.train.transforms.normalizer.forces.mean instead"),
        ("dataset.val.target_mean", 1.0, r"dataset.val.target_mean is not read"),
        (
            "eval_metrics",
            {"primary_metric": "forces_mae"},
            r"`eval_metrics` is not read .*call it `evaluation_metrics`",
        ),
        (
            "loss_fns",
            [{"energy": {"fn": "mae", "coefficient": 1}}],
            r"`loss_fns` is not read .*call it `loss_functions`",
        ),
    ],
)
def test_what_it_says(config, path, value, message):
    with pytest.raises(ValueError, match=message):
        require_sound(changed(config, path.split("."), value))


@pytest.mark.parametrize("where", ["energy.file", "file"])
def test_a_normalizer_file_that_does_not_exist(config, where):
    *block, key = f"dataset.train.transforms.normalizer.{where}".split(".")
    config = (
        changed(config, block, {key: "none.pt"}) if block[-1] == "energy" else changed(config, [*block, key], "n.pt")
    )
    with pytest.raises(FileNotFoundError, match=rf"dataset.train.transforms.normalizer.{where}: there is no 'n"):
        require_sound(config)


def test_old_keys_in_an_old_config(config):
    old = {"optim": {"force_coefficient": 100}, "task": {"primary_metric": "forces_mae"}}
    require_read_keys(old)
    require_read_keys(old | {"loss_functions": {}})
    require_read_keys({"loss_functions": config["loss_functions"], "optim": {"force_coefficient": None}})


def test_old_scales_of_a_data_set(config):
    """They may stay where the newer ones say the same, and must not be all there is."""
    old = {"normalize_labels": True, "target_mean": 0.3, "target_std": 2.0, "grad_target_mean": 0.0}
    config["dataset"]["train"] |= old
    require_read_keys(config)
    del config["dataset"]["train"]["transforms"]
    with pytest.raises(ValueError, match=r"dataset.train.normalize_labels is not read .*a `normalizer`"):
        require_read_keys(config)


@pytest.mark.parametrize(
    ("split", "remedy"), [("val", "`format: frames` beside it reads it"), ("train", "make data sets of it: `dens data")]
)
@pytest.mark.parametrize("name", ["set.traj", "set.extxyz", "set.extxyz.xz"])
def test_frames_are_no_damaged_lmdb(tmp_path, name, split, remedy):
    (tmp_path / name).write_bytes(b"- of Ulm")
    block = {"src": str(tmp_path / name), "format": "lmdb"}
    with pytest.raises(ValueError, match=rf"dataset.{split}.src: '.*{name}' is by its name a file of frames.*{remedy}"):
        require_files(block, split)
    require_files(block | {"format": "frames"}, split)
