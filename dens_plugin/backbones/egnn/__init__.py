"""EGNN (arXiv:2102.09844) for molecules and crystals, plain and with DeNS; importing it registers its names."""

from dens_plugin.backbones.egnn.family import FAMILY as FAMILY
from dens_plugin.backbones.egnn.heads import EGNNEnergyHead, EGNNGradientHead, EGNNNoiseHead, EGNNVectorHead
from dens_plugin.backbones.egnn.model import EGNN, EGNNDeNS

__all__ = ["EGNN", "EGNNDeNS", "EGNNEnergyHead", "EGNNGradientHead", "EGNNNoiseHead", "EGNNVectorHead"]
