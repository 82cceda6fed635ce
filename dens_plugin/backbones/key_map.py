"""Names of parameters in the checkpoints of the authors, of fairchem and of this package.

EquiformerV2:

| authors (flat) | fairchem 1.10 DeNS (hydra) | fairchem 1.10 plain (hydra) | here |
|---|---|---|---|
| ``energy_block`` | ``output_heads.energy.scalar_block`` | ``output_heads.energy.energy_block`` | as plain |
| ``force_block`` | ``output_heads.forces.vector_block`` | ``output_heads.forces.force_block`` | as plain |
| ``denoising_pos_block`` | ``output_heads.forces.denoising_pos_block`` | - | ``output_heads.noise.force_block`` |
| ``force_embedding.weight`` | ``backbone.force_embedding.weight`` | - | as fairchem |
| ``force_embedding.bias`` | ``backbone.force_embedding.bias`` | - | folded into ``sphere_embedding`` |
| others | ``backbone.`` | ``backbone.`` | ``backbone.`` |

eSCN has the same names, and no DeNS of fairchem's; fairchem's flat networks have those of the first column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dens_plugin.backbones.family import State, unwrapped

_ENERGY, _FORCES, _NOISE = (
    "output_heads.energy.energy_block.",
    "output_heads.forces.force_block.",
    "output_heads.noise.force_block.",
)
_FLAT = {"energy_block.": _ENERGY, "force_block.": _FORCES, "denoising_pos_block.": _NOISE}
_HYDRA = {
    "output_heads.energy.scalar_block.": _ENERGY,
    "output_heads.forces.vector_block.": _FORCES,
    "output_heads.forces.denoising_pos_block.": _NOISE,
    "output_heads.forces.denoising_linear.": "output_heads.noise.linear.",  # eSEN
}
_BIAS, EMBEDDING = "backbone.force_embedding.bias", "backbone.sphere_embedding.weight"
_DENS_ONLY = ("backbone.force_embedding.", "output_heads.noise.")


def to_plugin_keys(state: Mapping[str, torch.Tensor]) -> State:
    """A state dict of any of these kinds with this package's names, and its force bias folded.

    The other implementations add ``force_embedding.bias`` to degree 0 of every atom, corrupted or not, which is the
    same as adding it to every element's embedding.
    """
    renamed = {_renamed(key): value for key, value in unwrapped(state).items()}
    renamed.pop("backbone.force_embedding.expand_index", None)
    bias = renamed.pop(_BIAS, None)
    if bias is not None:
        renamed[EMBEDDING] = renamed[EMBEDDING] + bias
    return renamed


def to_plain_keys(state: Mapping[str, torch.Tensor]) -> State:
    """The same for fairchem's plain networks: without what only denoising uses."""
    return {key: value for key, value in to_plugin_keys(state).items() if not key.startswith(_DENS_ONLY)}


def _renamed(key: str) -> str:
    is_hydra = key.startswith(("backbone.", "output_heads."))
    for old, new in (_HYDRA if is_hydra else _FLAT).items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key if is_hydra else f"backbone.{key}"


def require_same(settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option of the authors' networks with another value than the one that fairchem's have."""
    for name, possible in options.items():
        if settings.get(name, possible) != possible:
            raise ValueError(f"the checkpoint's network has {name}: {settings[name]}, which fairchem's lacks")
