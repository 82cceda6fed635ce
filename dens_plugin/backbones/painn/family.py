"""What PaiNN is called, and which parts belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dens_plugin.backbones.family import Family, Translated, as_it_is
from dens_plugin.backbones.painn.keys import is_fairchems, to_plugin_keys

_OF_FLAT = ("regress_forces", "direct_forces", "scale_file")  # of fairchem's network in one piece


def _translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    if not is_fairchems(state):
        return as_it_is(state, settings)
    return Translated(to_plugin_keys(state), {key: value for key, value in settings.items() if key not in _OF_FLAT})


FAMILY = Family(
    title="PaiNN",
    backbone="dens_plugin.PaiNNDeNS",
    heads={"energy": "dens_plugin.PaiNNEnergyHead", "forces": "dens_plugin.PaiNNForceHead"},
    auxiliary="dens_plugin.PaiNNNoiseHead",
    signs=("message_layers.0.x_layernorm.", "message_layers.0.x_proj."),
    translate=_translate,
)
