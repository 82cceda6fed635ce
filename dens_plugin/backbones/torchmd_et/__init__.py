"""TorchMD-NET's equivariant transformer, plain and with DeNS; importing it registers its names."""

from dens_plugin.backbones.torchmd_et.family import FAMILY as FAMILY
from dens_plugin.backbones.torchmd_et.heads import (
    TorchMDETEnergyHead,
    TorchMDETGradientHead,
    TorchMDETReadoutHead,
    TorchMDETVectorHead,
)
from dens_plugin.backbones.torchmd_et.model import TorchMDET, TorchMDETDeNS

__all__ = [
    "TorchMDET",
    "TorchMDETDeNS",
    "TorchMDETEnergyHead",
    "TorchMDETGradientHead",
    "TorchMDETReadoutHead",
    "TorchMDETVectorHead",
]
