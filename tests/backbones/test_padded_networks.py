"""Outputs, losses and gradients of a padded batch are those of the batch, for every network."""

from __future__ import annotations

import copy

import pytest
import torch
from padded import MODELS, SIZES, assert_same_step, clean, esen, loaded, roomy, step_of

from dens_plugin.backbones.description import describe
from dens_plugin.backbones.family import families
from dens_plugin.fields import ENERGY, FORCES, NEIGHBOURS, Output
from dens_plugin.objectives.dens import DeNS
from dens_plugin.padding.pad import pad
from dens_plugin.testing import default_dtype, random_batch


@pytest.fixture(params=MODELS)
def model(request):
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        yield MODELS[request.param]().train()


@pytest.mark.parametrize("sizes", [SIZES, (1,), (1, 6)], ids=str)
def test_a_step_is_that_of_the_batch(model, sizes):
    objective = DeNS(prob=0.7)
    batch = loaded(model, objective, sizes)
    assert_same_step(step_of(model, objective, pad(batch, roomy(batch))), step_of(model, objective, batch))


def test_reads_the_edges_of_the_record(model):
    """And does not find any itself: of a record without the edge between two atoms it knows no such edge."""
    batch = loaded(model)
    record = batch[NEIGHBOURS]
    padded = pad(batch, roomy(batch))
    padded[NEIGHBOURS] = padded[NEIGHBOURS]._replace(checksum=record.checksum + 1)
    with pytest.raises(ValueError, match="do not belong to its"):
        model(copy.copy(padded))


def test_evaluation_is_that_of_the_batch(model):
    """Without records of an objective, as the plain network."""
    batch = clean(model)
    with torch.no_grad():
        torch.manual_seed(0)
        known = model.eval()(copy.copy(batch))
        torch.manual_seed(0)
        found = model(pad(batch, roomy(batch)))
    for name, value in known.items():
        assert (found[name][: len(value)] - value).abs().max() <= 1e-12 * max(1.0, value.abs().max().item())


def test_every_family_is_tried():
    titles = {describe(build()).family.title for build in MODELS.values()}
    assert titles == {family.title for family in families()}


def test_stress_as_a_derivative():
    data = random_batch(SIZES)
    data.stress = torch.randn(len(SIZES), 9)
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        heads = {"energy_forces": "dens_plugin.ESENGradientHead"}
        model = esen(heads, direct_forces=False, regress_stress=True).train()
        stress = Output("stress", "structure", 9, "eV/Å³", "l2mae")
        objective = DeNS(prob=0.7, labels=(ENERGY, FORCES, stress))
        batch = loaded(model, objective, batch=data)
        assert_same_step(step_of(model, objective, pad(batch, roomy(batch))), step_of(model, objective, batch))
