"""Weights of the authors' Equiformer (v1) under this package's names.

| authors | here |
|---|---|
| ``atom_embed.atom_type_lin`` | ``backbone.atom_embedding`` |
| ``edge_deg_embed.{exp,rad,proj}`` | ``backbone.edge_embedding.{expand,radial,linear}`` |
| ``force_embed.tp.weight`` | ``backbone.force_embedding.weight`` |
| ``force_embed.bias.0`` | added to ``backbone.atom_embedding.bias``, which is the same in every mode |
| ``blocks.N.ga.merge_{src,dst}`` | ``backbone.blocks.N.attention.merge_{source,target}`` |
| ``....sep_act.{dtp_rad,lin}`` | ``....{radial,linear}`` |
| ``....{sep_alpha,alpha_dot,proj}`` | ``....{score,score_dot,project}`` |
| ``....sep_value.dtp.tp.weight``, ``....sep_value.lin`` | ``....value.weight``, ``....value.linear`` |
| ``blocks.N.ffn.fctp_{1,2}`` | ``backbone.blocks.N.feed_forward.{expand,contract}`` |
| ``blocks.N.ffn_shortcut`` | ``backbone.blocks.N.shortcut`` |
| ``energy_head.{0,2}`` | ``output_heads.energy.{hidden,out}`` |
| ``denoising_pos_head`` | ``output_heads.noise.block``, without the bias of values, which it does not use |

Theirs are e3nn tensor products: a weight is ``....tp.weight`` and a bias ``....bias.0``; the last layer of a radial
network is ``net.6.weight`` with ``offset``. Weights of paths change their order, from input, harmonics' and output
degree to output, input and harmonics' degree. They change sign where the file's 3j symbols, which depend on the version
of e3nn that made it, have the other sign than those here; the symbols themselves are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dens_plugin.backbones.equiformer.settings import PAPER_CHANNELS, backbone_settings
from dens_plugin.backbones.family import State, Translated, as_it_is
from dens_plugin.nn.wigner import wigner_3j

_MODULES = {
    r"^atom_embed\.atom_type_lin\.": "backbone.atom_embedding.",
    r"^edge_deg_embed\.exp\.": "backbone.edge_embedding.expand.",
    r"^edge_deg_embed\.rad\.": "backbone.edge_embedding.radial.",
    r"^edge_deg_embed\.proj\.": "backbone.edge_embedding.linear.",
    r"^force_embed\.": "backbone.force_embedding.",
    r"^blocks\.(\d+)\.ga\.": r"backbone.blocks.\1.attention.",
    r"^blocks\.(\d+)\.ffn\.fctp_1\.": r"backbone.blocks.\1.feed_forward.expand.",
    r"^blocks\.(\d+)\.ffn\.fctp_2\.": r"backbone.blocks.\1.feed_forward.contract.",
    r"^blocks\.(\d+)\.ffn_shortcut\.": r"backbone.blocks.\1.shortcut.",
    r"^blocks\.": "backbone.blocks.",
    r"^norm\.": "backbone.norm.",
    r"^energy_head\.0\.": "output_heads.energy.hidden.",
    r"^energy_head\.2\.": "output_heads.energy.out.",
    r"^denoising_pos_head\.": "output_heads.noise.block.",
    r"\.merge_src\.": ".merge_source.",
    r"\.merge_dst\.": ".merge_target.",
    r"\.sep_act\.dtp_rad\.": ".radial.",
    r"\.sep_act\.lin\.": ".linear.",
    r"\.sep_alpha\.": ".score.",
    r"\.alpha_dot$": ".score_dot",
    r"\.sep_value\.dtp\.tp\.weight$": ".value.weight",
    r"\.sep_value\.lin\.": ".value.linear.",
    r"\.proj\.": ".project.",
    r"\.radial\.offset$": ".radial.out.bias",
    r"\.radial\.net\.6\.": ".radial.out.",
    r"\.radial\.net\.": ".radial.hidden.",
    r"\.affine_(weight|bias)$": r".\1",
    r"\.tp\.weight$": ".weight",
    r"\.bias\.0$": ".bias",
}
_BY_PATH = (".value.weight", ".radial.out.weight", ".radial.out.bias")
_CONSTANT = re.compile(r"output_mask$|_w3j_|^rbf\.")
_SYMBOL = re.compile(r"_w3j_(\d+)_(\d+)_(\d+)$")
_UNUSED = "output_heads.noise.block.value.linear.bias"
_FORCE_BIAS, _ATOM_BIAS = "backbone.force_embedding.bias", "backbone.atom_embedding.bias"


def to_plugin_keys(state: Mapping[str, torch.Tensor], channels: Sequence[int]) -> State:
    """The authors' state dict with this package's names, orders and signs.

    Args:
        state: of the authors' network with DeNS or without, whichever version of e3nn it was made with.
        channels: C_l per degree of ``irreps_node_embedding``.
    """
    state = {re.sub(r"^(module\.)+", "", key): value for key, value in state.items()}
    flipped = _flipped_symbols(state)
    out: State = {}
    for key, value in state.items():
        name = _renamed(key)
        if _CONSTANT.search(key) or value.numel() == 0:
            continue
        if name.endswith(_BY_PATH):
            value = _reordered(value, channels, flipped)
        out[name] = value
    out["backbone.atom_embedding.weight"] = out["backbone.atom_embedding.weight"].view(-1, channels[0])
    out.pop(_UNUSED, None)
    force_bias = out.pop(_FORCE_BIAS, None)
    if force_bias is not None:
        out[_ATOM_BIAS] = out[_ATOM_BIAS] + force_bias
    return {key: value.squeeze(0) if key.endswith(".score_dot") else value for key, value in out.items()}


def translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    """As `Family.translate`: the authors' weights and settings, or this package's."""
    if not is_authors(state):
        return as_it_is(state, settings)
    ours = backbone_settings(settings)
    return Translated(to_plugin_keys(state, ours.get("channels", PAPER_CHANNELS)), ours)


def is_authors(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is of the authors' Equiformer (v1)."""
    return any("edge_deg_embed.dw." in key for key in state)


class _Path(NamedTuple):
    """Degrees of a path, in the order of this package."""

    output: int
    inputs: int
    edge: int


def _renamed(key: str) -> str:
    for pattern, replacement in _MODULES.items():
        key = re.sub(pattern, replacement, key)
    return key


def _flipped_symbols(state: Mapping[str, torch.Tensor]) -> set[_Path]:
    """The paths whose 3j symbol in the file is minus the one here."""
    flipped = set()
    for key, stored in state.items():
        match = _SYMBOL.search(key)
        if match:
            inputs, edge, output = map(int, match.groups())
            if (wigner_3j(inputs, edge, output) * stored.double()).sum() < 0:
                flipped.add(_Path(output, inputs, edge))
    return flipped


def _reordered(weights: torch.Tensor, channels: Sequence[int], flipped: set[_Path]) -> torch.Tensor:
    """Weights of paths, along their first dimension, in this package's order and with its signs."""
    degrees = range(len(channels))
    paths = [
        _Path(output, inputs, edge)
        for inputs in degrees
        for edge in degrees
        for output in degrees
        if abs(inputs - edge) <= output <= inputs + edge
    ]
    parts = dict(zip(paths, weights.split([channels[path.inputs] for path in paths]), strict=True))
    return torch.cat([-parts[path] if path in flipped else parts[path] for path in sorted(paths)])
