"""Names of parameters in fairchem's PaiNN, flat or as a backbone with heads, and here.

| fairchem, flat | fairchem, hydra | here |
|---|---|---|
| ``out_energy`` | ``output_heads.energy.out_energy`` | as hydra |
| ``out_forces`` | ``output_heads.forces.out_forces`` | as hydra |
| ``upd_out_scalar_scale_0.scale_factor`` (0: none) | under ``backbone`` | ``update_layers.0.scale`` (1: none) |
| ``radial_basis.rbf.offset`` | under ``backbone`` | - (follows from the number of Gaussians) |
| others | ``backbone.`` | ``backbone.`` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_HEADS = {"out_energy.": "output_heads.energy.", "out_forces.": "output_heads.forces."}
_SCALE = re.compile(r"backbone\.upd_out_scalar_scale_(\d+)\.scale_factor")
_FOLLOWS = "backbone.radial_basis.rbf.offset"


def is_fairchems(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether names are those of fairchem's PaiNN."""
    return any("upd_out_scalar_scale_" in key for key in state)


def to_plugin_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of fairchem's PaiNN with this package's names."""
    renamed = {}
    for key, value in state.items():
        name = _in_hydra(key.removeprefix("module."))
        scale = _SCALE.fullmatch(name)
        if scale:
            name, value = f"backbone.update_layers.{scale[1]}.scale", torch.where(value == 0, 1.0, value)
        if name != _FOLLOWS:
            renamed[name] = value
    return renamed


def _in_hydra(key: str) -> str:
    if key.startswith(("backbone.", "output_heads.")):
        return key
    return next((head + key for prefix, head in _HEADS.items() if key.startswith(prefix)), f"backbone.{key}")
