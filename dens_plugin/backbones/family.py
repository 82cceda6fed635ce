"""Families of networks: what people call one, which parts it has with DeNS and without, how others name its weights.

A backbone's file or folder in `dens_plugin.backbones` has its family as ``FAMILY``, and is found by being there.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field

import dens_plugin.backbones


@dataclass(frozen=True)
class Family:
    """A network, with DeNS and without.

    Attributes:
        title: what people call it.
        backbone: the one that encodes forces, as the name of ``model.backbone.model``.
        heads: output -> the module of ``model.heads`` that predicts it; a module may predict several.
        auxiliary: the module for a vector of each atom that serves training alone, by any ``output_name``.
        fairchems: fairchem's backbone, from which ours is derived, or None.
        plain: its name of ``model.backbone.model``.
        plain_heads: as ``heads``, of fairchem's.
    """

    title: str
    backbone: str
    heads: Mapping[str, str]
    auxiliary: str
    fairchems: type | None = None
    plain: str | None = None
    plain_heads: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def families() -> tuple[Family, ...]:
    """Those of all backbones of this package."""
    names = [entry.name for entry in pkgutil.iter_modules(dens_plugin.backbones.__path__)]
    modules = [importlib.import_module(f"{dens_plugin.backbones.__name__}.{name}") for name in names]
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def titles() -> str:
    """What people call them, for messages."""
    return ", ".join(family.title for family in families())
