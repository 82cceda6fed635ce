from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from fairchem.core.common import distutils
from samples import base_config, trainer_arguments, write_lmdb

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
    return base_config(data)


@pytest.fixture
def build(tmp_path):
    """From a config to a trainer, with fairchem's keyword arguments and data files that no other trainer has open."""

    def copied(folder):
        target = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        return str(shutil.copytree(folder, target)) if Path(folder).is_dir() else folder

    def make(config, cls=None, **arguments):
        distutils.setup_env_local()
        config = copy.deepcopy(config)
        for split in config["dataset"].values():
            split["src"] = copied(split["src"])
        return (cls or DeNSTrainer)(**trainer_arguments(config, run_dir=tmp_path, **arguments))

    return make
