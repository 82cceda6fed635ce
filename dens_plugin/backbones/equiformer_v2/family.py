"""What EquiformerV2 is called, and which parts belong together."""

from __future__ import annotations

from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone

from dens_plugin.backbones.equiformer_v2.keys import translate
from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="EquiformerV2",
    backbone="dens_plugin.EquiformerV2DeNS",
    heads={"energy": "dens_plugin.EnergyHead", "forces": "dens_plugin.ForceHead"},
    auxiliary="dens_plugin.NoiseHead",
    signs=(".ga.so2_conv_1.",),
    translate=translate,
    fairchems=EquiformerV2Backbone,
    undecayed=EquiformerV2Backbone.no_weight_decay,
    plain="equiformer_v2_backbone",
    plain_heads={"energy": "equiformerV2_scalar_head", "forces": "equiformerV2_vector_head"},
)
