"""Denoise pre-training against values written out from equation 7, and what it keeps as every objective does."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.common.registry import registry
from torch_geometric.data import Batch, Data

from dens_plugin.fields import CORRUPTION, NOISE, ROWS, Corruption, rows_of
from dens_plugin.objectives.pretrain import DenoisePretraining
from dens_plugin.testing import EPOCH, ObjectiveContract, random_batch
from dens_plugin.training.losses import term


class TestPretrainContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return DenoisePretraining()


def test_needs_no_labels():
    batch = random_batch()
    del batch.energy, batch.forces
    objective = DenoisePretraining.from_settings({})
    prepared = objective.prepare(batch, EPOCH)
    assert objective.labels == ()
    assert set(rows_of(prepared)) == {NOISE}
    assert not objective.needs


@pytest.mark.parametrize("case", ["A", "B"])
def test_loss_is_equation_7_summed_over_the_batch(golden, case):
    values = golden("relatives/denoising_loss_reference.json")["cases"][case]
    inputs = {key: torch.tensor(value) for key, value in values["inputs"].items()}
    sizes = inputs["batch"].bincount().tolist()
    batch = Batch.from_data_list([Data(pos=pos, natoms=len(pos)) for pos in inputs["pos"].split(sizes)])
    every = torch.ones(len(batch.pos), dtype=torch.bool)
    sigma = inputs["sigma"].expand(len(sizes))
    batch[CORRUPTION] = Corruption(every, inputs["eps"], sigma, torch.zeros_like(inputs["eps"]))
    found = {}
    for reduction in ("sum", "mean"):
        objective = DenoisePretraining(reduction=reduction)
        batch[ROWS] = objective.rows(batch)
        part = term(
            1.0,
            registry.get_loss_class(objective.outputs[0].loss)(),
            prediction=inputs["noise_pred"],
            target=objective.targets(batch)[NOISE],
            rows=batch[ROWS][NOISE],
            natoms=batch.natoms[batch.batch],
        )
        found[reduction] = (part.errors.sum() / part.count).item()
    assert found["sum"] == pytest.approx(values["outputs"]["dp_code_mse_sum_over_batch"], rel=1e-5)
    assert found["mean"] == pytest.approx(values["outputs"]["variant_L_denoise_mean_over_all_atoms"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sigma": 0}, "sigma must be a positive"), ({"reduction": "none"}, "reduction must be 'sum' or 'mean'")],
)
def test_impossible_settings_name_key_and_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        DenoisePretraining.from_settings(settings)
