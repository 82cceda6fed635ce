"""DeNS for fairchem-core: training equivariant force fields with denoising of non-equilibrium structures.

Reference: Liao, Smidt, Shuaibi and Das, "Generalizing Denoising to Non-Equilibrium Structures Improves Equivariant
Force Fields", arXiv:2403.09549.

Importing this package is quick and needs neither torch nor fairchem-core. The public names below are loaded on first
use, which also registers the short names (``dens``, ``equiformer_v2_dens``, ...) in fairchem's registry; a dotted path
such as ``dens_plugin.DeNSTrainer`` in a YAML file is such a use.
"""

from __future__ import annotations

import importlib
from typing import Any

import dens_plugin.stand_ins  # noqa: F401  (its import makes fairchem-core importable without torch-scatter)

__version__ = "0.1.0"

_HOMES = {
    "DeNSTrainer": "dens_plugin.training.trainer",
    "EquiformerV2DeNS": "dens_plugin.backbones.equiformer_v2",
    "EnergyHead": "dens_plugin.backbones.equiformer_v2",
    "ForceHead": "dens_plugin.backbones.equiformer_v2",
    "NoiseHead": "dens_plugin.backbones.equiformer_v2",
    "FlatEquiformerV2DeNS": "dens_plugin.backbones.equiformer_v2",
    "ESCNDeNS": "dens_plugin.backbones.escn",
    "ESCNEnergyHead": "dens_plugin.backbones.escn",
    "ESCNForceHead": "dens_plugin.backbones.escn",
    "ESCNNoiseHead": "dens_plugin.backbones.escn",
    "FlatESCNDeNS": "dens_plugin.backbones.escn",
    "ESENDeNS": "dens_plugin.backbones.esen",
    "ESENEnergyHead": "dens_plugin.backbones.esen",
    "ESENForceHead": "dens_plugin.backbones.esen",
    "ESENGradientHead": "dens_plugin.backbones.esen",
    "ESENNoiseHead": "dens_plugin.backbones.esen",
    "Equiformer": "dens_plugin.backbones.equiformer",
    "EquiformerDeNS": "dens_plugin.backbones.equiformer",
    "EquiformerGradientHead": "dens_plugin.backbones.equiformer",
    "EquiformerNoiseHead": "dens_plugin.backbones.equiformer",
    "FlatEquiformerDeNS": "dens_plugin.backbones.equiformer_flat",
    "PaiNN": "dens_plugin.backbones.painn",
    "PaiNNDeNS": "dens_plugin.backbones.painn",
    "PaiNNEnergyHead": "dens_plugin.backbones.painn",
    "PaiNNForceHead": "dens_plugin.backbones.painn",
    "PaiNNGradientHead": "dens_plugin.backbones.painn",
    "PaiNNNoiseHead": "dens_plugin.backbones.painn",
    "DeNS": "dens_plugin.objectives.dens",
    "load_calculator": "dens_plugin.inference.calculator",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dens_plugin' has no attribute '{name}'; it offers {', '.join(_HOMES)}")
    importlib.import_module("dens_plugin.compat").prepare_host()
    return getattr(importlib.import_module(_HOMES[name]), name)
