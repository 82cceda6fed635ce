"""What eSEN is called, and which parts belong together."""

from __future__ import annotations

from fairchem.core.models.esen.esen import eSEN_Backbone

from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="eSEN",
    backbone="dens_plugin.ESENDeNS",
    heads={"energy": "dens_plugin.ESENEnergyHead", "forces": "dens_plugin.ESENForceHead"},
    auxiliary="dens_plugin.ESENNoiseHead",
    fairchems=eSEN_Backbone,
    plain="esen_backbone",
    plain_heads={"energy": "esen_mlp_energy_head", "forces": "esen_linear_force_head"},
)
