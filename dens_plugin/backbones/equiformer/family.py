"""What Equiformer (v1) is called, and which parts belong together; fairchem has none."""

from __future__ import annotations

from dens_plugin.backbones.equiformer.keys import translate
from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="Equiformer",
    backbone="dens_plugin.EquiformerDeNS",
    heads={"energy": "dens_plugin.EquiformerGradientHead", "forces": "dens_plugin.EquiformerGradientHead"},
    auxiliary="dens_plugin.EquiformerNoiseHead",
    signs=(".attention.merge_source.", "edge_deg_embed.dw."),
    translate=translate,
)
