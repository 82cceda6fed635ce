"""Names of parameters in TorchMD-NET's checkpoints, of which PVD's and NDeM's networks have the same, and here.

| TorchMD-NET | here |
|---|---|
| ``representation_model.`` | ``backbone.`` |
| ``output_model.`` | ``output_heads.energy.output.`` |
| ``output_model_noise.`` | ``output_heads.noise.output.`` |
| ``update_net.layers.0`` (since version 2) | ``update_net.0`` |
| ``mean``, ``std``, ``prior_model``, ``distance.box``, ``pos_normalizer`` | - (the normalisers are the trainer's) |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

_PREFIXES = {
    "representation_model.": "backbone.",
    "output_model.": "output_heads.energy.output.",
    "output_model_noise.": "output_heads.noise.output.",
}
_LEFT_OUT = ("mean", "std", "prior_model.", "pos_normalizer.", "representation_model.distance.")


def is_torchmds(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether names are those of TorchMD-NET's ET."""
    return any("representation_model.attention_layers." in key for key in state)


def to_plugin_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of TorchMD-NET's ET with this package's names."""
    plain = {key.removeprefix("model."): value for key, value in state.items()}  # of Lightning's module
    return {_renamed(key): value for key, value in plain.items() if not key.startswith(_LEFT_OUT)}


def _renamed(key: str) -> str:
    for old, new in _PREFIXES.items():
        if key.startswith(old):
            return (new + key.removeprefix(old)).replace(".update_net.layers.", ".update_net.")
    return key
