"""Imports what registers short names in fairchem's registry: all backbones, and the data sets that are not fairchem's.

A new backbone is a file in `dens_plugin.backbones`, and is found here by being there.
"""

from __future__ import annotations

import importlib
import pkgutil

import dens_plugin.backbones
import dens_plugin.data.joined_lmdb
import dens_plugin.data.md_lmdb
import dens_plugin.data.molecules.dataset
import dens_plugin.data.oc22

for _module in pkgutil.iter_modules(dens_plugin.backbones.__path__):
    importlib.import_module(f"dens_plugin.backbones.{_module.name}")
