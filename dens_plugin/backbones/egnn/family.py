"""What EGNN is called, and which parts belong together; fairchem has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dens_plugin.backbones.egnn.keys import is_authors, to_plugin_keys
from dens_plugin.backbones.family import Family, Translated, as_it_is


def _translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    """The network of denoise pre-training, of whose settings no file says anything, or this package's."""
    known = as_it_is(state, settings)
    return known._replace(state=to_plugin_keys(known.state)) if is_authors(known.state) else known


FAMILY = Family(
    title="EGNN",
    backbone="dens_plugin.EGNNDeNS",
    heads={"energy": "dens_plugin.EGNNGradientHead", "forces": "dens_plugin.EGNNGradientHead"},
    auxiliary="dens_plugin.EGNNVectorHead",
    signs=(".messages.first.", ".edge_mlp.0."),
    translate=_translate,
    encoding=("backbone.force_terms.",),
)
