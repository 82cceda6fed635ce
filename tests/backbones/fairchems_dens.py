"""fairchem's own models with DeNS beside ours."""

from __future__ import annotations

import copy

import torch

from dens_plugin.fields import NOISE
from dens_plugin.testing import assert_close, corrupted_batch, predict, random_batch


def assert_same_numbers(ours, rival, state):
    """Of corrupted structures, with our weights by fairchem's names, whose forces of corrupted atoms are the noise."""
    missing = rival.load_state_dict(state, strict=False).missing_keys
    assert set(missing) == {"backbone.force_embedding.bias", "backbone.force_embedding.expand_index"}
    torch.nn.init.zeros_(rival.backbone.force_embedding.bias)
    batch = random_batch()
    mask = torch.arange(batch.num_nodes) % 3 == 0
    corrupted = corrupted_batch(batch, mask)
    flagged = copy.copy(corrupted)
    flagged.denoising_pos_forward, flagged.noise_mask = True, mask
    found, expected = predict(ours, corrupted), predict(rival, flagged)
    assert_close(found["energy"], expected["energy"], 1e-5)
    assert_close(torch.where(mask[:, None], found[NOISE], found["forces"]), expected["forces"], 1e-5)
