"""Outputs, losses and gradients of a padded batch are those of the batch, for every network."""

from __future__ import annotations

import pytest
import torch
from padded import MODELS, SIZES, loaded, roomy, step_of

from dens_plugin.objectives.dens import DeNS
from dens_plugin.testing import default_dtype
from dens_plugin.training.padding import pad

ROUNDING = 1e-12


@pytest.fixture(params=MODELS)
def model(request):
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        yield MODELS[request.param]().train()


def assert_same_step(found, expected):
    """To rounding, relative to the largest number or to one: vectors of single atoms are rounding themselves."""
    (outputs, loss, gradients), (known, known_loss, known_gradients) = found, expected
    assert outputs.keys() == known.keys()
    for name, value in known.items():
        scale = max(value.abs().max().item(), 1.0)
        assert (outputs[name][: len(value)] - value).abs().max() <= ROUNDING * scale, name
    assert loss.value.item() == pytest.approx(known_loss.value.item(), rel=ROUNDING)
    assert bool(loss.bad) == bool(known_loss.bad)
    scale = max(1.0, *(value.abs().max().item() for value in known_gradients.values()))
    for name, value in known_gradients.items():
        assert (gradients[name] - value).abs().max() <= ROUNDING * scale, name


@pytest.mark.parametrize("sizes", [SIZES, (1,), (1, 6)], ids=str)
def test_a_step_is_that_of_the_batch(model, sizes):
    objective = DeNS(prob=0.7)
    batch = loaded(model, objective, sizes)
    assert_same_step(step_of(model, objective, pad(batch, roomy(batch))), step_of(model, objective, batch))
