"""What eSEN is called, and which parts belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.models.esen.esen import eSEN_Backbone

from dens_plugin.backbones.family import Family, Translated
from dens_plugin.backbones.key_map import to_plugin_keys


def _translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    return Translated(to_plugin_keys(state), dict(settings))


FAMILY = Family(
    title="eSEN",
    backbone="dens_plugin.ESENDeNS",
    heads={"energy": "dens_plugin.ESENEnergyHead", "forces": "dens_plugin.ESENForceHead"},
    auxiliary="dens_plugin.ESENNoiseHead",
    signs=(".edge_wise.so2_conv_1.",),
    translate=_translate,
    fairchems=eSEN_Backbone,
    undecayed=eSEN_Backbone.no_weight_decay,
    plain="esen_backbone",
    plain_heads={"energy": "esen_mlp_energy_head", "forces": "esen_linear_force_head"},
    same_everywhere=True,
)
