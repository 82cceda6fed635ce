"""What SchNet is called, and which parts belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dens_plugin.backbones.family import Family, Translated, as_it_is, unwrapped
from dens_plugin.backbones.schnet.keys import is_pygs, to_plugin_keys

_OF_FLAT = ("regress_forces", "direct_forces", "scale_file", "readout")  # of fairchem's network in one piece
_SUMS = ("add", "sum")


def _translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    if not is_pygs(state):
        return as_it_is(state, settings)
    readout = settings.get("readout", "add")
    if readout not in _SUMS:
        raise ValueError(
            f"the energies of this SchNet are of readout '{readout}', which a conversion would lose: rename its "
            "weights by dens_plugin.backbones.schnet.keys, and set model.heads.energy.readout: mean"
        )
    kept = {key: value for key, value in settings.items() if key not in _OF_FLAT}
    return Translated(to_plugin_keys(unwrapped(state)), {"use_pbc": True, **kept})  # fairchem's default


FAMILY = Family(
    title="SchNet",
    backbone="dens_plugin.SchNet",
    heads={"energy": "dens_plugin.SchNetGradientHead"},
    auxiliary="dens_plugin.GradientNoiseHead",
    signs=("interactions.0.mlp.",),
    translate=_translate,
    encoding=(),
)
