"""What SE(3)-Transformer is called, and which parts belong together; fairchem has none."""

from __future__ import annotations

from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="SE(3)-Transformer",
    backbone="dens_plugin.SE3TransformerDeNS",
    heads={"energy": "dens_plugin.SE3TransformerGradientHead", "forces": "dens_plugin.SE3TransformerGradientHead"},
    auxiliary="dens_plugin.SE3TransformerVectorHead",
    signs=(".attention.key.radial.", "Gblock.0.GMAB."),
)
