"""Starting from the weights of another run: a plain model (warm start) or DeNS (fine-tuning)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dens_plugin.backbones.key_map import to_plugin_keys
from dens_plugin.compat import load_checkpoint

_NEW_WITH_DENS = ("backbone.force_embedding.", "output_heads.noise.")
_DIRECT_FORCES = "output_heads.forces."  # of no use to a model whose forces are gradients


def warm_start(model: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint; what DeNS adds to a plain model keeps its initial values.

    Takes fairchem's EquiformerV2, eSCN and eSEN (hydra or flat), fairchem's and the authors' EquiformerV2 with DeNS,
    and our own.
    Optimiser, schedule and EMA start afresh, with EMA on.

    Args:
        model: to be loaded, without DDP around it.
        path: the checkpoint.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the checkpoint does not fit the model, naming the first parameters that differ.
    """
    found = to_plugin_keys(_weights(load_checkpoint(path)))
    expected = model.state_dict()
    missing = [key for key in expected if key not in found and not key.startswith(_NEW_WITH_DENS)]
    has_forces = any(key.startswith(_DIRECT_FORCES) for key in expected)
    unneeded = _NEW_WITH_DENS if has_forces else (*_NEW_WITH_DENS, _DIRECT_FORCES)
    unexpected = [key for key in found if key not in expected and not key.startswith(unneeded)]
    reshaped = [key for key in expected if key in found and expected[key].shape != found[key].shape]
    for kind, keys in (("lacks", missing), ("has too much:", unexpected), ("has in another shape:", reshaped)):
        if keys:
            raise ValueError(
                f"the checkpoint '{path}' does not fit the model: it {kind} {len(keys)} keys, first {keys[:3]}; "
                "compare the model's hyper-parameters with those of its run"
            )
    model.load_state_dict({**expected, **{key: found[key] for key in expected if key in found}})
    fresh = sum(key not in found for key in expected)
    logging.info(f"Started from the weights of {path}; {fresh} of {len(expected)} entries are new.")


def _weights(checkpoint: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    if "state_dict" not in checkpoint:
        raise ValueError(f"a checkpoint needs `state_dict`, found {sorted(checkpoint)}; is this a fairchem checkpoint?")
    return checkpoint["state_dict"]


def warn_of_other_model(model: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Log where the config contradicts a checkpoint's model: some settings change numbers but no shape."""
    trained = _flat((checkpoint.get("config") or {}).get("model"))
    here = _flat(model)
    differing = [key for key in trained if key in here and trained[key] != here[key]]
    for key in differing:
        logging.warning(f"model.{key} is {here[key]!r} in the config and {trained[key]!r} in the checkpoint")


def _flat(block: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all settings of a block; nothing for a block of older checkpoints that is only a name."""
    if not isinstance(block, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
