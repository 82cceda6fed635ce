"""Families of networks: what people call one, which parts it has with DeNS and without, how others name its weights.

A backbone's file or folder in `dens_plugin.backbones` has its family as ``FAMILY``, and is found by being there.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

import dens_plugin.backbones

State = dict[str, torch.Tensor]
Settings = dict[str, Any]


class Translated(NamedTuple):
    """Weights of any code's checkpoint under this package's names.

    Attributes:
        state: ``backbone.*`` and ``output_heads.<name>.*``.
        settings: of ``model.backbone``; those that the file has and this package's network has too.
        references: (Z,) energies of elements, in units of the energy's normaliser, that the file's network adds itself.
        notes: what of the file is not kept, each a sentence for people.
    """

    state: State
    settings: Settings
    references: torch.Tensor | None = None
    notes: tuple[str, ...] = ()


def as_it_is(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    """Of files that have this package's names, but for DDP's."""
    return Translated(unwrapped(state), dict(settings))


def unwrapped(state: Mapping[str, torch.Tensor]) -> State:
    """Without the prefix of DDP's wrapper, which is there once or twice, or not."""
    while any(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


@dataclass(frozen=True)
class Family:
    """A network, with DeNS and without.

    Attributes:
        title: what people call it.
        backbone: the one that encodes forces, if any can, as the name of ``model.backbone.model``.
        heads: output -> the module of ``model.heads`` that predicts it; a module may predict several.
        auxiliary: the module for a vector of each atom that serves training alone, by any ``output_name``.
        signs: parts of its parameters' names, in whichever code's files, that no other network has.
        translate: a file's weights and settings to this package's.
        fairchems: fairchem's backbone, from which ours is derived, or None.
        plain: its name of ``model.backbone.model``, of a network that has our names for its weights.
        plain_heads: as ``heads``, of fairchem's.
        same_everywhere: whether fairchem's checkpoints and ours need no conversion.
        encoding: how names of the weights that encode forces begin; nothing for a network that cannot encode them.
        undecayed: names of a model's parameters that weight decay spares, by the rule of the network's authors.
    """

    title: str
    backbone: str
    heads: Mapping[str, str]
    auxiliary: str
    signs: tuple[str, ...]
    translate: Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], Translated] = as_it_is
    fairchems: type | None = None
    plain: str | None = None
    plain_heads: Mapping[str, str] = field(default_factory=dict)
    same_everywhere: bool = False
    encoding: tuple[str, ...] = ("backbone.force_embedding.",)
    undecayed: Callable[[nn.Module], Collection[str]] | None = None

    def knows(self, state: Mapping[str, torch.Tensor]) -> bool:
        """Whether weights are of this network, by their names."""
        return any(sign in key for key in state for sign in self.signs)


@functools.cache
def families() -> tuple[Family, ...]:
    """Those of all backbones of this package."""
    names = [entry.name for entry in pkgutil.iter_modules(dens_plugin.backbones.__path__)]
    modules = [importlib.import_module(f"{dens_plugin.backbones.__name__}.{name}") for name in names]
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def family_of(state: Mapping[str, torch.Tensor], source: Any) -> Family:
    """The family that weights belong to.

    Args:
        state: of whichever code's checkpoint.
        source: its name for people.

    Raises:
        ValueError: if they are of no network that this package has.
    """
    for family in families():
        if family.knows(state):
            return family
    known = ", ".join(family.title for family in families())
    first = ", ".join(sorted(state)[:2]) or "none at all"
    raise ValueError(f"'{source}' holds the weights of no network known here ({known}); the first are {first}")
