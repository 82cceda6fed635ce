"""What SE(3)-Transformer is called, and which parts belong together."""

from __future__ import annotations

from dens_plugin.backbones.family import Family

FAMILY = Family(
    title="SE(3)-Transformer",
    backbone="dens_plugin.SE3TransformerDeNS",
    heads={"energy": "dens_plugin.SE3TransformerGradientHead"},
    auxiliary="dens_plugin.SE3TransformerVectorHead",
)
