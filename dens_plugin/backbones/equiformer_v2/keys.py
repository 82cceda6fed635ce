"""Checkpoints of EquiformerV2 by the authors, by fairchem and by this package; names of weights are in `key_map`.

What their networks have and ours lacks, and what becomes of it:

- constants that other versions keep in other shapes (``expand_index``) are left out;
- ``energy_lin_ref``, energies of elements over the normaliser's scale, become references where the network adds them;
- the encoding of sigma (``noise_schedule_sigma_embedding``) is a linear map of a number that is zero for clean
  structures: its bias is added to every element's embedding, which is exact at inference, and its weight is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dens_plugin.backbones.family import Translated
from dens_plugin.backbones.key_map import EMBEDDING, require_same, to_plugin_keys

_SIGMA = "backbone.noise_schedule_sigma_embedding."
_REFERENCES = "backbone.energy_lin_ref"
_OF_FILES = ("use_noise_schedule_sigma_encoding", "use_tp_reparam")
_OF_REFERENCES = ("use_energy_lin_ref", "load_energy_lin_ref")
_NO_SIGMA = (
    "The network encodes sigma, which ours does not. Energies and forces are the same; when trained on with denoising, "
    "it starts without that encoding."
)


def translate(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Translated:
    """As `Family.translate`.

    Raises:
        ValueError: for ``use_tp_reparam``, of which nothing here is the same.
    """
    require_same(settings, {"use_tp_reparam": False})
    left_out, references = _OF_FILES, None
    found = {key: value for key, value in to_plugin_keys(state).items() if not key.endswith(".expand_index")}
    if settings.get("use_energy_lin_ref"):
        left_out, references = _OF_FILES + _OF_REFERENCES, found.pop(_REFERENCES, None)
    bias, weight = (found.pop(_SIGMA + name, None) for name in ("bias", "weight"))
    if bias is not None:
        found[EMBEDDING] = found[EMBEDDING] + bias
    kept = {key: value for key, value in settings.items() if key not in left_out}
    return Translated(found, kept, references, notes=() if weight is None else (_NO_SIGMA,))
