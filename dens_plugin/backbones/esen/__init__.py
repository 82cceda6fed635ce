"""fairchem's eSEN with DeNS; importing it registers its names."""

from dens_plugin.backbones.esen.family import FAMILY as FAMILY
from dens_plugin.backbones.esen.model import ESENDeNS, ESENEnergyHead, ESENForceHead, ESENGradientHead, ESENNoiseHead

__all__ = ["ESENDeNS", "ESENEnergyHead", "ESENForceHead", "ESENGradientHead", "ESENNoiseHead"]
