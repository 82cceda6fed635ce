"""Heads for properties about a molecule's centre."""

from __future__ import annotations

import pytest
import torch
from ase.data import atomic_masses
from e3nn import o3
from fairchem.core.models.base import HydraModel

import dens_plugin.backbones.egnn
import dens_plugin.backbones.painn
import dens_plugin.backbones.properties
import dens_plugin.backbones.torchmd_et  # noqa: F401  (all register names)
from dens_plugin.fields import ROWS
from dens_plugin.testing import assert_close, every_structure, predict, random_batch, rotated

ET = {"model": "torchmd_et_plugin_backbone", "embedding_dimension": 8, "num_layers": 1, "num_heads": 2, "num_rbf": 4}
PAINN = {
    "model": "painn_plugin_backbone",
    "hidden_channels": 8,
    "num_layers": 1,
    "num_rbf": 4,
    "cutoff": 5.0,
    "use_pbc": False,
}
HEADS = {"mu": {"module": "dipole_head"}, "r2": {"module": "spatial_extent_head"}}


def ours(backbone=ET, heads=HEADS, **changes):
    torch.manual_seed(0)
    return HydraModel(backbone={**backbone, **changes}, heads=heads, pass_through_head_outputs=True)


@pytest.mark.parametrize("backbone", [ET, PAINN], ids=["ET", "PaiNN"])
def test_depend_on_neither_place_nor_orientation(backbone):
    model, batch = ours(backbone), random_batch()
    turned = rotated(batch, o3.rand_matrix())
    turned.pos = turned.pos + torch.tensor([3.0, -7.0, 1.0])
    first, second = predict(model, batch), predict(model, turned)
    for name in HEADS:
        assert first[name].shape == (3,)
        assert_close(second[name], first[name], 1e-4)
    assert (first["mu"] > 0).all()


def test_are_their_formulas():
    """With every atom's number one: twice the square of a distance, the distance of centres of mass and of atoms."""
    model, batch = ours(), random_batch((5,))
    for head in model.output_heads.values():
        head.output.forward = lambda scalars, vectors: (scalars.new_ones(len(scalars)), 0 * vectors[..., 0])
    masses = torch.tensor(atomic_masses, dtype=torch.float)[batch.atomic_numbers][:, None]
    places = batch.pos - (masses * batch.pos).sum(0) / masses.sum()
    out = predict(model, batch)
    assert out["mu"].item() == pytest.approx(places.sum(0).norm().item(), rel=1e-5)
    assert out["r2"].item() == pytest.approx(places.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_has_a_gradient(name):
    model, batch = ours(heads={name: HEADS[name]}).train(), random_batch()
    batch[ROWS] = {name: every_structure(batch)}
    predict(model, batch)[name].sum().backward()
    of_head = model.output_heads[name].named_parameters()
    assert not [key for key, parameter in of_head if parameter.grad is None]


def test_a_single_atom_has_no_extent_and_gradients():
    model, batch = ours(), random_batch((1, 1))
    out = predict(model, batch)
    (out["mu"].sum() + out["r2"].sum()).backward()
    assert out["r2"].abs().max() < 1e-6
    gradients = [p.grad for p in model.output_heads["mu"].parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"backbone": {"model": "egnn_plugin_backbone", "channels": 8}},
            "from scalars and vectors of atoms, which EGNN does",
        ),
        ({"use_pbc": True}, "`mu` is of molecules: set model.backbone.use_pbc: false"),
    ],
)
def test_refuse_other_backbones(model, message):
    with pytest.raises(ValueError, match=message):
        ours(**model)
