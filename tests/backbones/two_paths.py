"""One training step of a model on fairchem's path and on the fast one, and how near the two results must be."""

from __future__ import annotations

import torch

from dens_plugin.fields import rows_of
from dens_plugin.testing import corrupted_batch, random_batch


def a_corrupted_batch():
    batch = random_batch()
    return corrupted_batch(batch, torch.arange(batch.num_nodes) % 3 == 0)


def step(model, batch, seed=3):
    """Predictions where they count, and gradients of a sum of their squares."""
    torch.manual_seed(seed)
    rows = rows_of(batch)
    outputs = {name: out[rows[name].mask] if name in rows else out for name, out in model.train()(batch).items()}
    model.zero_grad()
    sum((out**2).sum() for out in outputs.values()).backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


def largest(found, expected):
    """Difference, relative to the largest expected number."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def assert_same_step(found, expected, *, outputs, gradients, rounding=0.0):
    """Two results of `step` agree to these relative errors; outputs also to those of numbers as large as `rounding`."""
    assert found[0].keys() == expected[0].keys() == {"energy", "forces", "noise"}
    for name, value in expected[0].items():
        difference = (found[0][name] - value).abs().max()
        assert difference <= outputs * (value.abs().max() + rounding), name
    scale = max(grad.norm() for grad in expected[1].values() if grad is not None)
    for name, grad in expected[1].items():
        if grad is None:
            assert found[1][name] is None, name
        else:
            difference = (found[1][name] - grad).norm()
            assert difference <= gradients * (grad.norm() + 1e-3 * scale), name
