from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from fairchem.core.common import distutils
from training_samples import MODEL, write_lmdb

from dens_plugin.testing import random_structure
from dens_plugin.training.trainer import DeNSTrainer


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Folders train (12 structures) and val (6)."""
    root = tmp_path_factory.mktemp("data")
    structures = [random_structure(5 + index % 4, seed=index, sid=index) for index in range(18)]
    write_lmdb(root / "train", structures[:12])
    write_lmdb(root / "val", structures[12:])
    return root


@pytest.fixture
def config(data):
    """A complete config for a run of a few steps."""
    return {
        "trainer": "dens_plugin.DeNSTrainer",
        "dataset": {
            "train": {
                "format": "lmdb",
                "src": str(data / "train"),
                "transforms": {
                    "normalizer": {"energy": {"mean": 0.3, "stdev": 2.0}, "forces": {"mean": 0.0, "stdev": 2.0}}
                },
            },
            "val": {"src": str(data / "val")},
        },
        "outputs": {
            "energy": {"level": "system"},
            "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 2}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
        "evaluation_metrics": {"primary_metric": "forces_mae", "metrics": {"energy": ["mae"], "forces": ["mae"]}},
        "model": copy.deepcopy(MODEL),
        "task": {"objective": {"name": "dens", "prob": 0.8}},
        "logger": "tensorboard",
        "optim": {
            "batch_size": 2,
            "eval_batch_size": 3,
            "num_workers": 0,
            "lr_initial": 1.0e-3,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": 1.0e-3},
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine",
                "warmup_factor": 0.2,
                "warmup_epochs": 0.5,
                "lr_min_factor": 0.01,
            },
            "max_epochs": 1,
            "clip_grad_norm": 100,
            "ema_decay": 0.99,
        },
    }


@pytest.fixture
def build(tmp_path):
    """From a config to a trainer, with the host's keyword arguments and data files that no other trainer has open."""

    def copied(folder):
        target = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        return str(shutil.copytree(folder, target)) if Path(folder).is_dir() else folder

    def make(config, cls=None, **arguments):

        distutils.setup_env_local()
        config = copy.deepcopy(config)
        for split in config["dataset"].values():
            split["src"] = copied(split["src"])
        options = {
            "task": config["task"],
            "model": config["model"],
            "outputs": config["outputs"],
            "dataset": config["dataset"],
            "optimizer": config["optim"],
            "loss_functions": config["loss_functions"],
            "evaluation_metrics": config["evaluation_metrics"],
            "identifier": "test",
            "run_dir": str(tmp_path),
            "seed": 0,
            "logger": config["logger"],
            "local_rank": 0,
            "cpu": True,
            "print_every": 1,
            "name": "ocp",
        }
        return (cls or DeNSTrainer)(**{**options, **arguments})

    return make
