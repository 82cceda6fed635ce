"""What EGNN is called, and which parts belong together."""

from __future__ import annotations

from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="EGNN",
    backbone="dens_plugin.EGNNDeNS",
    heads={"energy": "dens_plugin.EGNNGradientHead"},
    auxiliary="dens_plugin.EGNNVectorHead",
)
