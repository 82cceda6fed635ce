"""Equiformer (v1) with forces as gradients, plain and with DeNS; importing it registers its names."""

from dens_plugin.backbones.equiformer.family import FAMILY as FAMILY
from dens_plugin.backbones.equiformer.flat import FlatEquiformerDeNS
from dens_plugin.backbones.equiformer.model import (
    Equiformer,
    EquiformerDeNS,
    EquiformerEnergyHead,
    EquiformerGradientHead,
    EquiformerNoiseHead,
)

__all__ = [
    "Equiformer",
    "EquiformerDeNS",
    "EquiformerEnergyHead",
    "EquiformerGradientHead",
    "EquiformerNoiseHead",
    "FlatEquiformerDeNS",
]
