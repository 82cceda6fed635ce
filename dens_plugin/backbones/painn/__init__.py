"""PaiNN, plain and with DeNS; importing it registers its names."""

from dens_plugin.backbones.painn.family import FAMILY as FAMILY
from dens_plugin.backbones.painn.heads import PaiNNEnergyHead, PaiNNForceHead, PaiNNGradientHead, PaiNNNoiseHead
from dens_plugin.backbones.painn.model import PaiNN, PaiNNDeNS

__all__ = ["PaiNN", "PaiNNDeNS", "PaiNNEnergyHead", "PaiNNForceHead", "PaiNNGradientHead", "PaiNNNoiseHead"]
