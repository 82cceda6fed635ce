"""A key that nothing reads is refused, with what was meant; those that fairchem or this package read pass."""

from __future__ import annotations

import copy

import pytest
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets.lmdb_dataset import LmdbDataset

import dens_plugin.training.trainer  # noqa: F401
from dens_plugin.checks.files import ConfigFile
from dens_plugin.checks.schema import require_known_keys


@pytest.fixture(autouse=True)
def _registered():
    setup_imports({"skip_experimental_imports": True})


def changed(config, path, value):
    """A copy with one more setting, named as on the command line; digits are places in a list."""
    config = copy.deepcopy(config)
    *blocks, key = path.split(".")
    block = config
    for name in blocks:
        block = block[int(name)] if isinstance(block, list) else block.setdefault(name, {})
    block[key] = value
    return config


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("objective", "unknown key 'objective' in the config; it belongs under `task`"),
        ("optimizer", "unknown key 'optimizer' in the config; it belongs under `optim`"),
        ("optim.seed", "unknown key 'seed' in optim; give --seed on the command line"),
        ("loss_function", "unknown key 'loss_function' in the config; did you mean 'loss_functions'?"),
        ("frobnicate", "unknown key 'frobnicate' in the config; allowed are "),
        ("task.objectives", "unknown key 'objectives' in task; did you mean 'objective'?"),
        ("task.batch_size", "unknown key 'batch_size' in task; it belongs under `optim`"),
        ("optim.lr", "unknown key 'lr' in optim; did you mean 'lr_initial'?"),
        ("dataset.valid", "unknown key 'valid' in dataset; did you mean 'val'?"),
        ("dataset.train.transform", "unknown key 'transform' in dataset.train; did you mean 'transforms'?"),
        ("dataset.train.transforms.normaliser", "in dataset.train.transforms; did you mean 'normalizer'?"),
        ("dataset.val.sample", "unknown key 'sample' in dataset.val; did you mean 'sample_n'?"),
        ("dataset.train.a2g_args", "unknown key 'a2g_args' in dataset.train"),
        ("dataset.train.val_split_settings.sampl_n", "in dataset.train.val_split_settings; did you mean 'sample_n'?"),
        ("outputs.forces.train_on_free_atom", "in outputs.forces; did you mean 'train_on_free_atoms'?"),
        ("outputs.energy.decomposition.part.levl", "in outputs.energy.decomposition.part; did you mean 'level'?"),
        ("loss_functions.1.forces.coeficient", "in loss_functions[1].forces; did you mean 'coefficient'?"),
        ("evaluation_metrics.metric", "in evaluation_metrics; did you mean 'metrics'?"),
    ],
)
def test_unread_keys(config, path, message):
    require_known_keys(config)
    with pytest.raises(ValueError, match="unknown key") as caught:
        require_known_keys(changed(config, path, 1))
    assert message in str(caught.value)


def test_the_file_with_the_key_is_named(config, tmp_path):
    files = [ConfigFile(tmp_path / "own.yml", {}), ConfigFile(tmp_path / "common.yml", {"optim": {"lr": 1}})]
    with pytest.raises(ValueError, match=r"unknown key 'lr' in optim \(.*common.yml\)"):
        require_known_keys(changed(config, "optim.lr", 1), files)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("logger", {"name": "wandb", "project": "p", "entity": "e", "group": "g", "watch": 100}),
        ("dataset.train", {"format": "ase_db", "a2g_args": {}, "select_args": {}}),
        ("dataset.train", {"format": "oc22_lmdb", "lin_ref": None, "oc20_ref": None}),
        ("dataset.val.use_train_settings", False),
        ("outputs.forces.prediction_dtype", "float32"),
        ("loss_functions.0.energy.reduction", "sum"),
        ("task", {"dataset": "trajectory_lmdb", "description": "text", "type": "regression", "grad_input": "forces"}),
        ("dataset", [{"src": "a", "normalize_labels": True, "target_mean": 0.0}, {"src": "b"}]),
    ],
)
def test_keys_that_are_read(config, path, value):
    require_known_keys(changed(config, path, value))


def test_ase_keys_are_read_where_the_format_is_inherited(config):
    config = changed(config, "dataset.train", {"format": "ase_db"})
    require_known_keys(changed(config, "dataset.val.select_args", {}))


def test_data_sets_of_other_code_read_what_they_like(config):
    class Other(LmdbDataset):
        pass

    Other.__module__ = "other.package"
    registry.register_dataset("other")(Other)
    try:
        require_known_keys(changed(config, "dataset.train", {"format": "other", "anything": 1}))
    finally:
        del registry.mapping["dataset_name_mapping"]["other"]


def test_the_plain_fairchem_command_meets_the_same(config, build):
    """It builds the trainer without a look at the config."""
    config["dataset"]["val"]["sample"] = 3
    with pytest.raises(ValueError, match=r"unknown key 'sample' in dataset.val; did you mean 'sample_n'"):
        build(config)
