"""NDeM against values written out from the paper's formulas, and what it keeps as every objective does."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.common.registry import registry
from torch_geometric.data import Batch, Data

from dens_plugin.fields import CLEAN_ATOMS, CORRUPTION, ENERGY, ROWS, Corruption, corruption_of, rows_of
from dens_plugin.objectives.ndem import AUXILIARY_FORCES, NDeM
from dens_plugin.testing import EPOCH, ObjectiveContract, random_batch, random_structure
from dens_plugin.training.losses import term


class TestNDeMContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return NDeM(corrupt_ratio=0.8)


class TestNDeMOfEnergiesAloneContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return NDeM(labels=(ENERGY,), average="atoms", counted="all")


def test_clean_structures_come_first_and_copies_follow():
    batch = random_batch()
    prepared = NDeM(corrupt_ratio=None).prepare(batch, EPOCH)
    assert prepared.sid.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(prepared.pos[: len(batch.pos)], batch.pos)
    moved = prepared.pos[len(batch.pos) :] != batch.pos
    assert torch.equal(moved.all(dim=1), batch.fixed == 0)
    assert not corruption_of(prepared).forces.any()
    for key in ("cell", "energy", "natoms", "fixed", "forces"):
        assert torch.equal(prepared[key], torch.cat([batch[key], batch[key]]))


def test_labels_are_of_the_clean_half_and_auxiliary_forces_of_the_other():
    prepared = NDeM(corrupt_ratio=None).prepare(random_batch(), EPOCH)
    rows, half = rows_of(prepared), len(prepared.pos) // 2
    assert rows["energy"].mask.tolist() == [True] * 3 + [False] * 3
    assert torch.equal(rows["forces"].mask[:half], prepared.fixed[:half] == 0)
    assert not rows["forces"].mask[half:].any()
    assert torch.equal(rows[AUXILIARY_FORCES].mask[half:], prepared.fixed[half:] == 0)


def test_sigma_is_drawn_from_its_range_for_each_structure_or_batch():
    batch = Batch.from_data_list([random_structure(5, seed=index, sid=index) for index in range(60)])
    sigma = corruption_of(NDeM(sigma_low=0.01, sigma_high=0.03).prepare(batch, EPOCH)).sigma[:60]
    assert sigma.unique().numel() == 60
    assert 0.01 <= sigma.min() < 0.012
    assert 0.028 < sigma.max() <= 0.03
    assert corruption_of(NDeM(sigma_per="batch").prepare(batch, EPOCH)).sigma.unique().numel() == 1


@pytest.fixture(scope="module", params=["A", "B"])
def case(request, golden):
    """Inputs and outputs of a reference case."""
    values = golden("relatives/denoising_loss_reference.json")["cases"][request.param]
    inputs = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in values["inputs"].items()}
    return inputs, values["outputs"]


def loss_of(objective, inputs, *, mask):
    """Equation 17 by the objective's own rows, targets and predictions, as the trainer sums it up."""
    sizes = inputs["batch"].bincount().tolist()
    structures = [Data(pos=pos, natoms=len(pos)) for pos in inputs["pos"].split(sizes)]
    batch = Batch.from_data_list([*structures, *structures])
    nothing = torch.zeros_like(inputs["eps"])
    noise = torch.where(mask[:, None], inputs["eps"], nothing)
    batch[CORRUPTION] = Corruption(
        torch.cat([torch.zeros_like(mask), mask]),
        torch.cat([nothing, noise]),
        torch.full((2 * len(sizes),), inputs["sigma"]),
        torch.cat([nothing, nothing]),
    )
    batch[CLEAN_ATOMS] = torch.arange(len(mask)).repeat(2)
    batch[ROWS] = objective.rows(batch)
    clean, copies = torch.cat([inputs["f_hat"], nothing]), torch.cat([nothing, inputs["f_hat_aux"]])
    outputs = {"forces": clean, AUXILIARY_FORCES: copies}
    found = term(
        1.0,
        registry.get_loss_class(objective.outputs[0].loss)(),
        prediction=objective.predictions(outputs, batch)[AUXILIARY_FORCES],
        target=objective.targets(batch)[AUXILIARY_FORCES],
        rows=batch[ROWS][AUXILIARY_FORCES],
        natoms=batch.natoms[batch.batch],
    )
    return (found.errors.sum() / found.count).item()


@pytest.mark.parametrize(
    ("settings", "masked", "key"),
    [
        ({}, False, "eq17_L_NDeM"),
        ({"average": "atoms"}, False, "variant_L_NDeM_mean_over_all_atoms"),
        ({}, True, "masked_L_NDeM_noised_atoms_only"),
        ({"average": "atoms"}, True, "masked_L_NDeM_noised_atoms_only_pooled_over_batch"),
        ({"counted": "all"}, True, "masked_L_NDeM_all_atoms"),
    ],
)
def test_loss_is_equation_17(case, settings, masked, key):
    inputs, expected = case
    mask = inputs["mask"] if masked else torch.ones_like(inputs["mask"])
    found = loss_of(NDeM(**settings), inputs, mask=mask)
    assert found == pytest.approx(expected[key], rel=1e-5)
    if not masked:
        assert found != pytest.approx(expected["wrong_L_NDeM_sign_flipped"], rel=1e-2)
        assert found != pytest.approx(expected["wrong_L_NDeM_unnormalised_eps"], rel=1e-2)


def test_clean_forces_are_zero_where_there_are_no_labels():
    objective = NDeM(labels=(ENERGY,))
    prepared = objective.prepare(random_batch(), EPOCH)
    auxiliary = torch.randn_like(prepared.pos)
    found = objective.predictions({AUXILIARY_FORCES: auxiliary}, prepared)[AUXILIARY_FORCES]
    half = len(auxiliary) // 2
    assert torch.equal(found[half:], -auxiliary[half:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_low": 0.2}, "in order, got 0.2 and 0.05"),
        ({"sigma_low": 0}, "above 0"),
        ({"corrupt_ratio": 0}, "use null for all atoms"),
        ({"coefficient": -1}, "coefficient"),
        ({"sigma_per": "atom"}, "sigma_per must be 'structure' or 'batch', got 'atom'"),
        ({"sigma": 0.1}, "unknown key 'sigma'"),
    ],
)
def test_impossible_settings_name_key_and_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        NDeM.from_settings(settings)
