"""fairchem's eSCN with DeNS; importing it registers its names."""

from dens_plugin.backbones.escn.family import FAMILY as FAMILY
from dens_plugin.backbones.escn.model import ESCNDeNS, ESCNEnergyHead, ESCNForceHead, ESCNNoiseHead, FlatESCNDeNS

__all__ = ["ESCNDeNS", "ESCNEnergyHead", "ESCNForceHead", "ESCNNoiseHead", "FlatESCNDeNS"]
