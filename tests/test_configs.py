"""Every YAML file builds: its objective, its model, and the names in it; every sweep names experiments that exist."""

from __future__ import annotations

import re

import pytest
from experiments import CONFIGS, EXPERIMENTS, includes, model_of, name_of, read
from fairchem.core.common.registry import registry

import dens_plugin.data.oc22
import dens_plugin.training.trainer
from dens_plugin.checks.names import require_known_names
from dens_plugin.checks.objective import objective_from_config
from dens_plugin.checks.preflight import require_model
from dens_plugin.checks.schema import require_known_keys
from dens_plugin.cluster.sweeps import read_entries

SWEEPS = sorted((CONFIGS / "sweep").glob("*.yml"))
WHOLE = ("sweep", "experiment", "relaxation")  # folders of files that are used as they are, and included by none


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiment_builds(path):
    config = read(path)
    require_known_keys(config)
    require_known_names(config)
    assert issubclass(registry.get_trainer_class(config["trainer"]), dens_plugin.DeNSTrainer)
    require_model(model_of(config), objective_from_config(config))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiment_is_short(path):
    assert len(path.read_text().splitlines()) <= 20


def test_every_part_is_used():
    used = set().union(*map(includes, EXPERIMENTS))
    parts = {path for path in CONFIGS.rglob("*.yml") if path.relative_to(CONFIGS).parts[0] not in WHOLE}
    assert parts <= used


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yml")), ids=name_of)
def test_says_what_it_is(path):
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if "oc2" in path.parent.name], ids=name_of)
def test_says_how_large_its_batch_is(path):
    """Batch per GPU times GPUs, as the comment has them, also where a sweep launches it."""
    batch, gpus = map(int, re.search(r"Batch (\d+): (\d+) GPUs", path.read_text()).groups())
    assert batch == gpus * read(path)["optim"]["batch_size"]
    launched = [entry for entry in read_entries(SWEEPS) if entry.config.resolve() == path]
    assert {entry.nodes * entry.gpus for entry in launched} == {gpus}


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_sweep_names_experiments(path):
    assert {entry.config.resolve() for entry in read_entries([path])} <= set(EXPERIMENTS)
