"""What a padded batch is trained on is what the batch is trained on, for every objective; ghosts are read nowhere."""

from __future__ import annotations

import math

import pytest
import torch
from padded import assert_same_step, hydra, loaded, loss_of, roomy

from dens_plugin.fields import CORRUPTION, MD, PADDING, Rows
from dens_plugin.objectives.base import Errors
from dens_plugin.objectives.dens import DeNS, Eligibility
from dens_plugin.objectives.ndem import AUXILIARY_FORCES, NDeM
from dens_plugin.objectives.noise import FixedSigma, SigmaLadder
from dens_plugin.objectives.noisy_nodes import NoisyNodes
from dens_plugin.objectives.pretrain import DenoisePretraining
from dens_plugin.objectives.s2ef import S2EF
from dens_plugin.padding.pad import pad
from dens_plugin.testing import default_dtype, random_batch
from dens_plugin.training.validation import ObjectiveErrors

SIZES = (7, 4, 10, 1)
OBJECTIVES = {
    "s2ef": S2EF(),
    "s2ef of all atoms": S2EF(free_only=False),
    "dens": DeNS(prob=0.7),
    "dens of all structures": DeNS(prob=1.0, corrupt_ratio=None),
    "dens of none": DeNS(prob=0.0),
    "dens, levels": DeNS(prob=0.7, sigma=SigmaLadder(0.01, 0.3)),
    "dens, own denominators": DeNS(prob=0.7, denominators="own"),
    "dens without energies": DeNS(prob=0.7, energy_of_corrupted=False),
    "dens without forces": DeNS(prob=0.7, forces_of_corrupted=False),
    "dens beside the clean": DeNS(prob=0.7, keep_labels=True),
    "dropped labels": DeNS(prob=0.7, only_drop_labels=True),
    "dens of fixed atoms": DeNS(prob=0.7, all_atoms=True),
    "dens of all atoms": DeNS(prob=0.7, free_only=False),
    "dens without encoding": DeNS(prob=0.7, encode_forces=False),
    "dens of a few": DeNS(prob=1.0, eligibility=Eligibility(min_atoms=5, max_share=0.9)),
    "ndem": NDeM(),
    "ndem, atoms": NDeM(average="atoms", error="l2mae", counted="all"),
    "ndem, one level": NDeM(sigma_per="batch"),
    "noisy nodes": NoisyNodes(sigma=FixedSigma(0.1)),
    "noisy nodes, two passes": NoisyNodes(keep_labels=True),
    "pretrain": DenoisePretraining(),
    "pretrain, mean": DenoisePretraining(reduction="mean"),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture(scope="module")
def model():
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        settings = {"hidden_channels": 8, "num_layers": 2, "num_rbf": 8, "max_neighbors": 12, "cutoff": 4.0}
        heads = {"energy": "painn_dens_energy_head", "forces": "painn_dens_force_head"}
        model = hydra("painn_dens_plugin_backbone", heads | {"noise": "painn_dens_noise_head"}, **settings)
        auxiliary = hydra("painn_dens_plugin_backbone", heads, **settings).output_heads["forces"]
        auxiliary.output_name = AUXILIARY_FORCES
        model.output_heads[AUXILIARY_FORCES] = auxiliary
        return model.train()


def prepared(model, objective, **changes):
    data = random_batch(SIZES)
    data[MD] = torch.zeros(len(SIZES), dtype=torch.bool)
    for name, value in changes.items():
        data[name] = value
    return loaded(model, objective, batch=data)


def step_with_zeros(model, objective, batch):
    """A step in which heads may have no gradient, as nothing asks for them."""
    for parameter in model.parameters():
        parameter.grad = None
    outputs = model(batch)
    loss = loss_of(objective, outputs, batch)
    loss.value.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return outputs, loss, {name: value.clone() for name, value in gradients.items()}


def spoilt(padded):
    """The batch with NaN in everything of its ghosts that a loss or an error could read, and 0 atoms in each."""
    real, changed = padded[PADDING], padded.clone()
    for name in ("energy", "forces"):
        mask = real.atoms if name == "forces" else real.structures
        changed[name] = torch.where(mask.view(-1, *[1] * (padded[name].dim() - 1)), padded[name], math.nan)
    record = padded.get(CORRUPTION)
    if record is not None:
        changed[CORRUPTION] = record._replace(
            noise=torch.where(real.atoms[:, None], record.noise, math.nan),
            sigma=torch.where(real.structures, record.sigma, math.nan),
        )
    return changed


class Spoiling(torch.autograd.Function):
    """NaN in the rows of ghosts, also in what comes back from a loss to them unless it is zero there."""

    @staticmethod
    def forward(ctx, value, mask):
        ctx.mask = mask.view(-1, *[1] * (value.dim() - 1))
        return torch.where(ctx.mask, value, math.nan)

    @staticmethod
    def backward(ctx, grad):
        assert torch.isfinite(grad).all()
        assert not grad[~ctx.mask.expand_as(grad)].any()
        return grad, None


def spoilt_outputs(outputs, padded):
    real = padded[PADDING]
    masks = {len(real.atoms): real.atoms, len(real.structures): real.structures}
    return {name: Spoiling.apply(value, masks[len(value)]) for name, value in outputs.items()}


def test_a_step_is_that_of_the_batch(model, objective):
    batch = prepared(model, objective)
    assert_same_step(
        step_with_zeros(model, objective, pad(batch, roomy(batch))), step_with_zeros(model, objective, batch)
    )


def test_nothing_of_a_ghost_is_read(model, objective):
    """Labels, targets, predictions: with NaN in all of them loss, gradients and errors are the same."""
    batch = prepared(model, objective)
    padded = pad(batch, roomy(batch))
    outputs = {name: value.detach() for name, value in model(padded).items()}
    found = []
    for of_batch, spoil in ((padded, lambda values, _: values), (spoilt(padded), spoilt_outputs)):
        leaves = {name: value.clone().requires_grad_() for name, value in outputs.items()}
        values = spoil(leaves, of_batch)
        loss = loss_of(objective, values, of_batch)
        loss.value.backward()
        errors = objective.metrics(values, of_batch)
        own = ObjectiveErrors(objective)
        with torch.no_grad():
            own.add(values, values, of_batch)
        found.append((loss, leaves, errors, own.totals()))
    (loss, leaves, errors, totals), (clean, clean_leaves, clean_errors, clean_totals) = found[1], found[0]
    assert torch.equal(loss.value, clean.value)
    assert torch.isfinite(loss.value)
    assert not loss.bad
    for name, leaf in clean_leaves.items():
        assert (leaf.grad is None and leaves[name].grad is None) or torch.equal(leaves[name].grad, leaf.grad), name
    assert totals == clean_totals
    for name, known in clean_errors.items():
        assert torch.equal(errors[name].total(), known.total())
        assert torch.equal(errors[name].number(), known.number())


def test_errors_are_those_of_the_batch(model, objective):
    """Sums and numbers of what is watched, with fixed atoms marked or not."""
    for changes in ({}, {"fixed": torch.zeros(sum(SIZES))}):
        batch = prepared(model, objective, **changes)
        padded = pad(batch, roomy(batch))
        with torch.no_grad():
            known, found = (objective.metrics(model(each), each) for each in (batch, padded))
        assert known.keys() == found.keys()
        for name, errors in known.items():
            assert isinstance(errors, Errors)
            assert int(found[name].number()) == int(errors.number())
            assert found[name].total().item() == pytest.approx(errors.total().item(), rel=1e-12)


def test_weights_of_ghosts_are_zero(model):
    padded = pad(*(lambda batch: (batch, roomy(batch)))(prepared(model, NDeM())))
    rows: Rows = padded["rows"][AUXILIARY_FORCES]
    assert not rows.weight[~padded[PADDING].atoms].any()


def test_a_ghost_structure_alone_is_a_differentiable_zero(model):
    """A rank whose batch has no row that counts; here of a batch of fixed atoms, without energies."""
    objective = DeNS(prob=1.0, energy_of_corrupted=False)
    data = random_batch((3,))
    data.fixed = torch.ones(3)
    batch = loaded(model, objective, batch=data)
    batch["rows"]["energy"] = Rows.mean(torch.zeros(1, dtype=torch.bool)).listed()
    _, loss, gradients = step_with_zeros(model, objective, pad(batch, roomy(batch)))
    assert loss.value == 0
    assert all(not value.any() for value in gradients.values())
    assert {name.split(".")[1] for name in gradients if name.startswith("output_heads")} == {
        "energy",
        "forces",
        "noise",
    }
