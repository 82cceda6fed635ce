"""Names of parameters in PyG's SchNet, which fairchem's has too, and here.

| PyG, fairchem | here |
|---|---|
| ``lin1``, ``lin2`` | ``output_heads.energy.lin1``, ``lin2`` |
| ``interactions.N.conv.lin1``, ``conv.lin2`` | ``backbone.interactions.N.lin1``, ``lin2`` |
| ``interactions.N.conv.nn`` (``mlp`` again), ``distance_expansion.offset`` | - |
| others | ``backbone.`` |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def is_pygs(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether names are those of PyG's SchNet."""
    return any(".conv.lin1." in key for key in state)


def to_plugin_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of PyG's SchNet with this package's names."""
    kept = {key: value for key, value in state.items() if ".conv.nn." not in key}
    kept.pop("distance_expansion.offset", None)
    return {
        f"output_heads.energy.{key}" if key.startswith("lin") else f"backbone.{key.replace('.conv.', '.')}": value
        for key, value in kept.items()
    }
