"""Equiformer (v1) with forces as gradients, plain and with DeNS; importing it registers its names."""

from dens_plugin.backbones.equiformer.family import FAMILY as FAMILY
from dens_plugin.backbones.equiformer.flat import FlatEquiformerDeNS
from dens_plugin.backbones.equiformer.model import (
    Equiformer,
    EquiformerDeNS,
    EquiformerGradientHead,
    EquiformerNoiseHead,
)

__all__ = ["Equiformer", "EquiformerDeNS", "EquiformerGradientHead", "EquiformerNoiseHead", "FlatEquiformerDeNS"]
