"""SE(3)-Transformer (arXiv:2006.10503) plain and with DeNS; importing it registers its names."""

from dens_plugin.backbones.se3_transformer.family import FAMILY as FAMILY
from dens_plugin.backbones.se3_transformer.heads import (
    SE3TransformerEnergyHead,
    SE3TransformerGradientHead,
    SE3TransformerNoiseHead,
    SE3TransformerVectorHead,
)
from dens_plugin.backbones.se3_transformer.model import SE3Transformer, SE3TransformerDeNS

__all__ = [
    "SE3Transformer",
    "SE3TransformerDeNS",
    "SE3TransformerEnergyHead",
    "SE3TransformerGradientHead",
    "SE3TransformerNoiseHead",
    "SE3TransformerVectorHead",
]
