"""fairchem's EquiformerV2 with DeNS; importing it registers its names."""

from dens_plugin.backbones.equiformer_v2.family import FAMILY as FAMILY
from dens_plugin.backbones.equiformer_v2.model import (
    EnergyHead,
    EquiformerV2DeNS,
    FlatEquiformerV2DeNS,
    ForceHead,
    NoiseHead,
)

__all__ = ["EnergyHead", "EquiformerV2DeNS", "FlatEquiformerV2DeNS", "ForceHead", "NoiseHead"]
