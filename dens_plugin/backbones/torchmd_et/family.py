"""What TorchMD-NET's equivariant transformer is called, and which parts belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dens_plugin.backbones.family import Family, Translated, as_it_is
from dens_plugin.backbones.torchmd_et.keys import is_torchmds, to_plugin_keys

_OF_SCALE = ("mean", "std")


def _translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    if not is_torchmds(state):
        return as_it_is(state, settings)
    scale = [f"{name} {state[name].item():g}" for name in _OF_SCALE if name in state]
    notes = (f"TorchMD-NET's {' and '.join(scale)} of energies belong to the normaliser.",) if scale else ()
    return Translated(to_plugin_keys(state), dict(settings), notes=notes)


FAMILY = Family(
    title="TorchMD-NET's ET",
    backbone="dens_plugin.TorchMDETDeNS",
    heads={"energy": "dens_plugin.TorchMDETGradientHead"},
    auxiliary="dens_plugin.TorchMDETVectorHead",
    signs=("attention_layers.0.q_proj.",),
    translate=_translate,
)
