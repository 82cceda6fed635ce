"""What eSCN is called, and which parts belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.models.escn.escn import eSCNBackbone

from dens_plugin.backbones.family import Family, Translated
from dens_plugin.backbones.key_map import require_same, to_plugin_keys


def _translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    """The authors' eSCN has one option more, of which only its default is fairchem's network."""
    require_same(settings, {"use_grid": True})
    return Translated(to_plugin_keys(state), {key: value for key, value in settings.items() if key != "use_grid"})


FAMILY = Family(
    title="eSCN",
    backbone="dens_plugin.ESCNDeNS",
    heads={"energy": "dens_plugin.ESCNEnergyHead", "forces": "dens_plugin.ESCNForceHead"},
    auxiliary="dens_plugin.ESCNNoiseHead",
    signs=(".message_block.so2_block_source.",),
    translate=_translate,
    fairchems=eSCNBackbone,
    plain="escn_backbone",
    plain_heads={"energy": "escn_energy_head", "forces": "escn_force_head"},
)
