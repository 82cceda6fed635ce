from __future__ import annotations

import copy
import itertools

import pytest
import torch
from samples import MODEL
from torch.autograd.graph import saved_tensors_hooks

import dens_plugin
from dens_plugin.backbones.equiformer_v2.checkpointing import RecomputedBlock, checkpoint_blocks
from dens_plugin.testing import corrupted_batch, predict, random_batch

LAYERS = 4
FAST = pytest.mark.parametrize("fast", [True, False])


def build(wanted, *, fast=True, seed=0):
    torch.manual_seed(seed)
    settings = {key: MODEL[key] for key in MODEL if key != "name"} | {"num_layers": LAYERS, "sphere_channels": 16}
    model = dens_plugin.FlatEquiformerV2DeNS(**settings, fast=fast, activation_checkpoint=wanted)
    checkpoint_blocks(model.backbone)
    return model.train()


def corrupted():
    batch = random_batch()
    return corrupted_batch(batch, torch.arange(batch.num_nodes) % 3 == 0)


def gradients(model):
    """Of all parameters, with dropout and stochastic depth, and the loss."""
    loss = sum(value.square().sum() for value in predict(model, corrupted()).values())
    loss.backward()
    return loss, {name: value.grad for name, value in model.named_parameters() if value.requires_grad}


@FAST
@pytest.mark.parametrize("wanted", [1, LAYERS, True])
def test_changes_no_number(wanted, fast):
    plain, recomputed = gradients(build(False, fast=fast)), gradients(build(wanted, fast=fast))
    assert torch.equal(recomputed[0], plain[0])
    for name, value in plain[1].items():
        assert torch.equal(recomputed[1][name], value), name


def test_has_gradients_in_eval_mode():
    """fairchem's own has none there."""
    _, plain = gradients(build(0).eval())
    _, recomputed = gradients(build(LAYERS).eval())
    assert all(torch.equal(recomputed[name], value) for name, value in plain.items())


def kept_bytes(model):
    """What a forward pass keeps for the backward pass."""
    kept = {}  # the tensors themselves, as the address of one that is gone may be another's
    with saved_tensors_hooks(lambda value: kept.setdefault(value.data_ptr(), value), lambda value: value):
        predict(model, corrupted())
    return sum(value.nbytes for value in kept.values())


@FAST
def test_each_block_gives_back_its_memory(fast):
    kept = [kept_bytes(build(wanted, fast=fast)) for wanted in range(LAYERS + 1)]
    saved = [before - after for before, after in itertools.pairwise(kept)]
    assert min(saved) > 0.5 * max(saved) > 0


def test_builds_no_graph_at_inference():
    model = build(LAYERS)
    with torch.no_grad():
        assert not any(value.requires_grad for value in predict(model, random_batch()).values())


@pytest.mark.parametrize(("wanted", "count"), [(None, 0), (False, 0), (0, 0), (1, 1), (3, 3), (True, LAYERS)])
def test_takes_the_first_blocks(wanted, count):
    backbone = build(wanted).backbone
    recomputed = [isinstance(block, RecomputedBlock) for block in backbone.blocks]
    assert recomputed == [True] * count + [False] * (LAYERS - count)
    assert backbone.activation_checkpoint is False


def test_leaves_the_state_dict():
    assert build(2).state_dict().keys() == build(False).state_dict().keys()
    copy.deepcopy(build(2)).load_state_dict(build(False).state_dict())


@pytest.mark.parametrize("wanted", [-1, LAYERS + 1, 1.5, "two"])
def test_refuses_what_is_no_number_of_blocks(wanted):
    with pytest.raises(ValueError, match=r"true, false or a number of blocks from 0 to 4, got"):
        build(wanted)


def test_another_batch_may_come_before_the_backward_pass():
    """What is computed again belongs to its own batch, as without checkpointing."""

    def after_another(model):
        loss = sum(value.square().sum() for value in predict(model, corrupted()).values())
        torch.manual_seed(5)
        with torch.no_grad():
            model(random_batch([3, 4]))
        loss.backward()
        return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}

    plain, recomputed = after_another(build(0)), after_another(build(LAYERS))
    assert all(torch.equal(recomputed[name], value) for name, value in plain.items())
