"""What eSCN is called, and which parts belong together."""

from __future__ import annotations

from fairchem.core.models.escn.escn import eSCNBackbone

from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="eSCN",
    backbone="dens_plugin.ESCNDeNS",
    heads={"energy": "dens_plugin.ESCNEnergyHead", "forces": "dens_plugin.ESCNForceHead"},
    auxiliary="dens_plugin.ESCNNoiseHead",
    fairchems=eSCNBackbone,
    plain="escn_backbone",
    plain_heads={"energy": "escn_energy_head", "forces": "escn_force_head"},
)
