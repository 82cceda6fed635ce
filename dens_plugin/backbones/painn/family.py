"""What PaiNN is called, and which parts belong together."""

from __future__ import annotations

from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="PaiNN",
    backbone="dens_plugin.PaiNNDeNS",
    heads={"energy": "dens_plugin.PaiNNEnergyHead", "forces": "dens_plugin.PaiNNForceHead"},
    auxiliary="dens_plugin.PaiNNNoiseHead",
)
