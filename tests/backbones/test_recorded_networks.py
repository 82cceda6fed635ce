"""The way from a batch to gradients, recorded for one batch, gives those of another of the same sizes.

Both are padded to one budget. A pretended recorder does on a CPU what a CUDA graph does.
"""

from __future__ import annotations

import copy

import kernel_twins
import pytest
import torch
from graph_recorder import PretendedRecorder, as_on_a_gpu
from padded import MODELS, SIZES, clean, in_dtype, loss_of

from dens_plugin.backbones.neighbours import with_neighbours
from dens_plugin.graphs.recordings import Recordings
from dens_plugin.nn.backends.cpu import team
from dens_plugin.nn.backends.triton import availability
from dens_plugin.objectives.dens import DeNS
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.padding.budgets import Budget
from dens_plugin.padding.pad import pad
from dens_plugin.padding.signature import signature
from dens_plugin.testing import default_dtype, random_batch
from dens_plugin.training.loading import loader_search

OBJECTIVE = DeNS(prob=0.7)
# Code of fairchem's that asks about values, as it always did.
ASKING = {"EquiformerV2 by fairchem", "eSCN by fairchem", "eSEN, gradients"}
RECORDED = sorted(MODELS.keys() - ASKING)


@pytest.fixture(params=RECORDED)
def model(request):
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        yield MODELS[request.param]().train()


def batches(model, dtype=torch.float64):
    """Two batches with other atoms, edges and corruptions, padded to one budget."""
    search = loader_search(model, {"loader_graph": True})
    with default_dtype(torch.float32):
        made = [OBJECTIVE.prepare(random_batch(SIZES, seed=seed), StructureRandom(0, seed)) for seed in (1, 2)]
        made = [in_dtype(with_neighbours(batch, search), dtype) for batch in made]
    return padded(made)


def padded(made):
    needs = [Budget.of(batch) for batch in made]
    budget = Budget.around(needs)
    budget = budget.rounded(0.3).with_room_for(needs)
    out = [pad(batch, budget) for batch in made]
    assert signature(out[0]) == signature(out[1])
    return out


def calls(function, made):
    """What the function gives for the last batch: computed, and by a recording that was made for the first."""
    recorder, device = PretendedRecorder(), torch.device("cpu")
    recordings = Recordings(
        function, recorder, device, before=lambda _: None, seed=lambda: torch.manual_seed(3), what="a test"
    )
    with as_on_a_gpu():
        torch.manual_seed(3)
        expected = function(copy.copy(made[1]))
        for batch in (made[0], made[0], made[0], made[0]):
            recordings(copy.copy(batch))
        found = recordings(copy.copy(made[1]))
    assert recorder.replays == 2
    return found, expected


def assert_equal(found, expected, rounding=1e-12):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= rounding * max(1.0, value.abs().max().item()), name


def training_step(model):
    """From a batch to loss and gradients."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def step(batch):
        outputs = model(batch)
        loss = loss_of(OBJECTIVE, outputs, batch).value
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        named = dict(zip(parameters, gradients, strict=True))
        return {"loss": loss.detach(), **{name: value for name, value in named.items() if value is not None}}

    return step


def test_a_training_step(model):
    made = batches(model)
    assert_equal(*calls(training_step(model), made))
    assert_equal(*calls(training_step(model), made[::-1]))


@pytest.mark.parametrize(
    ("name", "changes"), [("EquiformerV2", {}), ("EquiformerV2", {"precision": "bf16"}), ("eSCN", {})]
)
def test_the_path_of_a_gpu(name, changes, monkeypatch):
    """With twins of Triton's kernels."""
    torch.manual_seed(0)
    model = MODELS[name](**changes).train()
    monkeypatch.setattr(availability, "triton_reason", lambda *_: None)
    monkeypatch.setattr(team, "loops_reason", lambda: "a GPU has none")
    kernel_twins.stand_in(monkeypatch)
    made, step = batches(model, torch.float32), training_step(model)
    with as_on_a_gpu():
        step(copy.copy(made[0]))  # which makes constants
    for order in (made, made[::-1]):
        assert_equal(*calls(step, order), rounding=1e-6)


def test_an_inference(model):
    model.eval()

    def infer(batch):
        with torch.no_grad():
            return model(batch)

    with default_dtype(torch.float32):
        made = [clean(model, seed=seed) for seed in (1, 2)]
    assert_equal(*calls(infer, padded(made)))
