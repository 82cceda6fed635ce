"""Weights of the network of denoise pre-training (arXiv:2303.02216) under this package's names.

| authors | here |
|---|---|
| ``type_embedding`` | ``backbone.embedding``, by atomic number where theirs is by kind of atom |
| ``gcl_N.edge_mlp.{0,2}``, ``gcl_N.att_mlp.0`` | ``backbone.layers.N.messages.{first,second,attention}`` |
| ``gcl_N.coord_mlp.{0,2}`` | ``backbone.layers.N.moves.{first,second}``; of the last ``output_heads.noise.moves`` |
| ``gcl_N.node_mlp.{0,2}`` | ``backbone.layers.N.{first,second}`` |
| ``energy_head.{0,2}`` | ``output_heads.energy.energy.{first,second}`` |

Layers of the original EGNN have the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]

_PARTS = {
    "edge_mlp.0": "messages.first",
    "edge_mlp.2": "messages.second",
    "att_mlp.0": "messages.attention",
    "coord_mlp.0": "moves.first",
    "coord_mlp.2": "moves.second",
    "node_mlp.0": "first",
    "node_mlp.2": "second",
}
_LAYER = re.compile(r"^gcl_(\d+)\.(\w+\.\d)\.(weight|bias)$")
_HEAD = {"energy_head.0.": "output_heads.energy.energy.first.", "energy_head.2.": "output_heads.energy.energy.second."}
_EMBEDDING = "type_embedding.weight"
# Atomic numbers of the neutral kinds among their 28 of an element and a charge, by their index.
_NUMBERS_OF_KINDS = {1: 35, 3: 6, 7: 17, 9: 9, 10: 1, 12: 53, 17: 7, 21: 8, 23: 15, 26: 16}
_KINDS = 28


def is_authors(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is of the authors' EGNN."""
    return _EMBEDDING in state and any(_LAYER.match(key) for key in state)


def to_plugin_keys(
    state: Mapping[str, torch.Tensor], *, by_kind: bool | None = None, max_num_elements: int = 100
) -> State:
    """The authors' state dict with this package's names.

    Args:
        state: of the network of denoise pre-training.
        by_kind: whether rows of its embedding are kinds of atoms, of an element and a charge, as in their data sets;
            None for just when there are as many rows as kinds. Charged kinds are left out: models here know no charge.
        max_num_elements: of the backbone, for an embedding by kind; elements without a kind get zeros.
    """
    last = max(int(match[1]) for match in map(_LAYER.match, state) if match)
    out = {_renamed(key, last): value for key, value in state.items()}
    embedding = state[_EMBEDDING]
    if by_kind if by_kind is not None else len(embedding) == _KINDS:
        rows = embedding.new_zeros(max_num_elements, embedding.shape[1])
        for kind, number in _NUMBERS_OF_KINDS.items():
            rows[number] = embedding[kind]
        embedding = rows
    return out | {"backbone.embedding.weight": embedding}


def layer_keys(state: Mapping[str, torch.Tensor]) -> State:
    """The weights of one layer, ``edge_mlp.0.weight`` and so on, under the names of `dens_plugin.nn.egnn.layer`."""
    renamed = {}
    for key, value in state.items():
        part, _, kind = key.rpartition(".")
        renamed[f"{_PARTS[part]}.{kind}"] = value
    return renamed


def _renamed(key: str, last: int) -> str:
    match = _LAYER.match(key)
    if match:
        part = _PARTS[match[2]]
        is_noise = int(match[1]) == last and part.startswith("moves.")
        return f"output_heads.noise.{part}.{match[3]}" if is_noise else f"backbone.layers.{match[1]}.{part}.{match[3]}"
    for old, new in _HEAD.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return "backbone.embedding.weight" if key == _EMBEDDING else key
