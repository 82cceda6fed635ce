"""Experiments of `configs/`, read and built without the memory of their parameters, for tests of all of them."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from pathlib import Path
from unittest.mock import patch

import yaml
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config, setup_imports
from fairchem.core.models.equiformer_v2 import so3 as equiformer_so3
from fairchem.core.models.escn import so3 as escn_so3
from torch import nn

from dens_plugin.checks.objective import without_switches

_GRIDS = {name: functools.cache(getattr(equiformer_so3, name)) for name in ("ToS2Grid", "FromS2Grid")}
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXPERIMENTS = sorted((CONFIGS / "experiment").rglob("*.yml"))


def name_of(path):
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def read(path):
    """A complete config; its parts must say nothing twice."""
    config, overwritten, conflicts = load_config(path)
    assert not overwritten
    assert not conflicts
    return config


def includes(path):
    """All files that a config is made of, itself among them."""
    names = yaml.safe_load(path.read_text()).get("includes", [])
    return {path}.union(*(includes((path.parent / name).resolve()) for name in names))


def model_of(config):
    """The model of a config with its parameters on the meta device; models of equal settings are built once."""
    return _built(json.dumps(without_switches(config["model"]), sort_keys=True))


@functools.cache
def _built(settings):
    setup_imports({"skip_experimental_imports": True})  # registers fairchem's models, as its command does
    settings = json.loads(settings)
    with _parameters_on_meta(), _grids_once():
        return registry.get_model_class(settings.pop("name"))(**copy.deepcopy(settings))


@contextlib.contextmanager
def _parameters_on_meta():
    """Parameters lose their numbers as soon as a module has them; buffers, of which grids are computed, keep theirs."""
    plain = nn.Module.register_parameter

    def register(module, name, parameter):
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        plain(module, name, parameter)

    nn.Module.register_parameter = register
    try:
        yield
    finally:
        nn.Module.register_parameter = plain


@contextlib.contextmanager
def _grids_once():
    """fairchem computes each grid for every order; they depend on the degree alone, and take most of its time."""
    with patch.multiple(equiformer_so3, **_GRIDS), patch.multiple(escn_so3, **_GRIDS):
        yield
