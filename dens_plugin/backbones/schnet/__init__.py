"""SchNet, which has no vectors and so cannot encode forces; importing it registers its names."""

from dens_plugin.backbones.schnet.family import FAMILY as FAMILY
from dens_plugin.backbones.schnet.heads import SchNetEnergyHead, SchNetGradientHead
from dens_plugin.backbones.schnet.model import SchNet

__all__ = ["SchNet", "SchNetEnergyHead", "SchNetGradientHead"]
