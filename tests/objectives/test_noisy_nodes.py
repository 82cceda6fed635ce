from __future__ import annotations

import pytest
import torch

from dens_plugin.fields import ENERGY, NOISE, corruption_of, rows_of
from dens_plugin.objectives.noise import FixedSigma
from dens_plugin.objectives.noisy_nodes import NoisyNodes
from dens_plugin.testing import EPOCH, ObjectiveContract, random_batch


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
