"""Every YAML file builds: its objective, its model, and the names in it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config

import dens_plugin.training.trainer  # noqa: F401  (registers the names)
from dens_plugin.training.config import objective_from_config, without_switches
from dens_plugin.training.preflight import require_model

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_builds(path):
    config, overwritten, conflicts = load_config(path)
    assert not overwritten
    assert not conflicts
    assert registry.get_trainer_class(config["trainer"]).__name__ == "DeNSTrainer"
    settings = without_switches(copy.deepcopy(config["model"]))
    model = registry.get_model_class(settings.pop("name"))(**settings)
    require_model(model, objective_from_config(config))


def test_every_part_is_used():
    used = set()
    for path in EXPERIMENTS:
        includes = [line.strip("- \n") for line in path.read_text().splitlines() if line.strip().startswith("- ../")]
        used |= {(path.parent / name).resolve() for name in includes}
    parts = {path for path in CONFIGS.rglob("*.yml") if path.parent.name != "experiment"}
    assert parts == used


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yml")), ids=lambda path: path.stem)
def test_says_what_it_is(path):
    assert path.read_text().startswith("# ")
