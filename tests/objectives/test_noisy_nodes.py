from __future__ import annotations

import pytest
import torch
from fairchem.core.common.registry import registry
from torch_geometric.data import Batch, Data

from dens_plugin.fields import CORRUPTION, ENERGY, NOISE, ROWS, Corruption, corruption_of, rows_of
from dens_plugin.objectives.noise import FixedSigma
from dens_plugin.objectives.noisy_nodes import NoisyNodes
from dens_plugin.testing import EPOCH, ObjectiveContract, random_batch
from dens_plugin.training.losses import term


class TestOnePassContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return NoisyNodes(labels=(ENERGY,))


class TestTwoPassesContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return NoisyNodes(keep_labels=True)


def test_one_pass_asks_all_labels_of_the_noisy_structures():
    batch = random_batch()
    prepared = NoisyNodes().prepare(batch, EPOCH)
    free = batch.fixed == 0
    assert torch.equal((prepared.pos != batch.pos).all(dim=1), free)
    assert torch.equal(rows_of(prepared)["forces"].mask, free)
    assert torch.equal(rows_of(prepared)[NOISE].mask, free)
    assert rows_of(prepared)["energy"].mask.all()
    assert not corruption_of(prepared).forces.any()


def test_two_passes_keep_the_labels_of_the_clean_structures():
    batch = random_batch()
    prepared = NoisyNodes(keep_labels=True).prepare(batch, EPOCH)
    rows, half = rows_of(prepared), len(batch.pos)
    assert torch.equal(prepared.pos[:half], batch.pos)
    assert rows["energy"].mask.tolist() == [True] * 3 + [False] * 3
    assert not rows["forces"].mask[half:].any()
    assert not rows[NOISE].mask[:half].any()
    assert torch.equal(rows[NOISE].mask[half:], batch.fixed == 0)


@pytest.mark.parametrize("keep_labels", [False, True])
def test_target_is_the_noise_in_units_of_sigma(keep_labels):
    objective = NoisyNodes(sigma=FixedSigma(0.05), keep_labels=keep_labels)
    prepared = objective.prepare(random_batch((200,)), EPOCH)
    target = objective.targets(prepared)[NOISE][rows_of(prepared)[NOISE].mask]
    assert target.std() == pytest.approx(1.0, abs=0.15)
    outputs = {NOISE: objective.targets(prepared)[NOISE] + 1}
    assert objective.metrics(outputs, prepared)["noise_mae"].mean() == pytest.approx(0.05, rel=1e-4)


def test_settings_from_yaml():
    found = NoisyNodes.from_settings({"sigma": "5e-3", "coefficient": 0.2, "keep_labels": "true"}, labels=(ENERGY,))
    assert found == NoisyNodes(sigma=FixedSigma(0.005), coefficient=0.2, keep_labels=True, labels=(ENERGY,))


@pytest.mark.parametrize("case", ["A", "B"])
def test_loss_is_three_times_the_mean_over_components(golden, case):
    """The TorchMD-NET line averages squares over components; a squared norm sums the three of an atom."""
    values = golden("relatives/denoising_loss_reference.json")["cases"][case]
    inputs = {key: torch.tensor(value) for key, value in values["inputs"].items()}
    sizes = inputs["batch"].bincount().tolist()
    batch = Batch.from_data_list([Data(pos=pos, natoms=len(pos)) for pos in inputs["pos"].split(sizes)])
    every = torch.ones(len(batch.pos), dtype=torch.bool)
    sigma = inputs["sigma"].expand(len(sizes))
    batch[CORRUPTION] = Corruption(every, inputs["eps"], sigma, torch.zeros_like(inputs["eps"]))
    objective = NoisyNodes(labels=())
    batch[ROWS] = objective.rows(batch)
    part = term(
        1.0,
        registry.get_loss_class(objective.outputs[0].loss)(),
        prediction=inputs["noise_pred"],
        target=objective.targets(batch)[NOISE],
        rows=batch[ROWS][NOISE],
        natoms=batch.natoms[batch.batch],
    )
    expected = 3 * values["outputs"]["pvd_code_mse_against_eps_over_sigma"]
    assert (part.errors.sum() / part.count).item() == pytest.approx(expected, rel=1e-5)


def test_unit_is_what_a_running_normaliser_comes_to(golden):
    """PVD divides the noise by a running mean and deviation of all that it drew, which here is sigma from the start."""
    steps = golden("relatives/pvd_noise_normalizer_seed25.pt")["steps"]
    drawn = torch.cat([step["pos_target"] for step in steps[:-1]])  # what it had seen when it was evaluated
    found = (steps[-1]["pos_target"] - drawn.mean(dim=0)) / drawn.std(dim=0, unbiased=False)
    assert torch.allclose(found, steps[-1]["normalized"], rtol=1e-6)
    sigma, error = 0.04, (2 * len(drawn)) ** -0.5
    ours = steps[-1]["pos_target"] / sigma
    ratios = (found + drawn.mean(dim=0) / drawn.std(dim=0, unbiased=False)) / ours
    assert (ratios.mean(dim=0) - 1).abs().max() < 3 * error  # of a deviation of so many draws
    assert (drawn.mean(dim=0) / sigma).abs().max() < 3 * len(drawn) ** -0.5
