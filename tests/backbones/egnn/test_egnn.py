from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch

import dens_plugin.backbones.egnn  # noqa: F401  (registers its names)
from dens_plugin.fields import NOISE, ROWS
from dens_plugin.testing import (
    BackboneContract,
    GradientForceContract,
    assert_close,
    default_dtype,
    every_atom,
    mixed_batch,
    predict,
    random_batch,
    random_structure,
)

SMALL = {"channels": 8, "num_layers": 3, "cutoff": 4.0, "max_neighbors": 40}
PLAIN, DENS = "egnn_plugin_backbone", "egnn_dens_plugin_backbone"
GRADIENT = {"energy": {"module": "egnn_gradient_head"}}
DIRECT = {"energy": {"module": "egnn_energy_head"}, "forces": {"module": "egnn_vector_head"}}
NOISE_HEAD = {"noise": {"module": "egnn_noise_head"}}


def ours(backbone=DENS, heads=GRADIENT, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": backbone, **SMALL, **changes},
        heads=heads | (NOISE_HEAD if backbone == DENS else {}),
        pass_through_head_outputs=True,
    ).eval()


def stirred(model):
    """With moves that matter: those of a new network are a thousandth of an angstrom."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "moves.second" in name or "factor" in name:
                parameter.normal_(0, 0.2)
    return model


class TestMolecules(GradientForceContract):
    """Open boundaries."""

    parts: ClassVar = (
        "backbone.embedding.weight",
        "backbone.force_terms.0.seen",
        "backbone.force_terms.1.factor.weight",
        "backbone.layers.0.messages.first.weight",
        "backbone.layers.0.messages.attention.weight",
        "backbone.layers.1.moves.second.weight",
        "backbone.layers.2.second.weight",
        "output_heads.energy.energy.second.weight",
        "output_heads.noise.moves.first.weight",
    )

    def build(self):
        return stirred(ours())


class TestDirectForces(BackboneContract):
    """Moves instead of gradients."""

    def build(self):
        return stirred(ours(heads=DIRECT))


class TestPeriodicStructures(BackboneContract):
    """Periodic boundaries, which fairchem computes in float32."""

    tolerance: ClassVar = {torch.float32: 1e-3}

    def build(self):
        return stirred(ours(use_pbc=True, normalize=False, attention=False))


def test_inference_is_the_plain_network():
    """The model without DeNS starts from the same weights, and predicts the same, bit for bit."""
    plain, dens, batch = ours(PLAIN), ours(), random_batch()
    first, second = predict(plain, batch), predict(dens, batch)
    assert all(torch.equal(first[name], second[name]) for name in ("energy", "forces"))


@pytest.mark.parametrize("use_pbc", [False, True])
def test_does_not_depend_on_the_order_of_atoms(use_pbc):
    model, batch = stirred(ours(use_pbc=use_pbc)), random_batch((7,))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    other = batch.clone()
    other.pos, other.atomic_numbers = batch.pos[order], batch.atomic_numbers[order]
    first, second = predict(model, batch), predict(model, other)
    assert_close(second["energy"], first["energy"], 1e-5)
    assert_close(second["forces"], first["forces"][order], 1e-4)


def test_mirrored_forces_give_mirrored_noise():
    """Forces enter as vectors, whose invariants a mirror leaves alone."""
    with default_dtype(torch.float64):
        model, (_, batch) = stirred(ours()), mixed_batch()
        mirrored = batch.clone()
        mirrored.pos, sign = batch.pos.clone(), torch.tensor([1.0, 1.0, -1.0])
        mirrored.pos *= sign
        mirrored.corruption = batch.corruption._replace(forces=batch.corruption.forces * sign)
        first, second = predict(model, batch), predict(model, mirrored)
    assert_close(second["energy"], first["energy"], 1e-12)
    assert_close(second[NOISE], first[NOISE] * sign, 1e-10)


@pytest.mark.parametrize("heads", [NOISE_HEAD, {"forces": DIRECT["forces"]}], ids=["noise", "forces"])
def test_vectors_alone_give_every_parameter_a_gradient(heads):
    """As pre-training asks for, and distributed training needs."""
    model, batch = ours(PLAIN, heads).train(), random_batch()
    batch[ROWS] = dict.fromkeys(heads, every_atom(batch))
    (vectors,) = predict(model, batch).values()
    vectors.square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_an_isolated_atom_does_not_notice_its_company():
    isolated = random_structure(1)
    alone, beside = Batch.from_data_list([isolated]), Batch.from_data_list([isolated, random_structure(5, seed=1)])
    model = ours()
    assert torch.allclose(predict(model, alone)["energy"][0], predict(model, beside)["energy"][0], atol=1e-6)


@pytest.mark.parametrize(("readout", "is_extensive"), [("atoms", True), ("sum", False), ("average", False)])
def test_readouts(readout, is_extensive):
    """Energies of two far pieces are the sum of theirs where atoms have energies."""
    model, piece = ours(heads={"energy": {"module": "egnn_gradient_head", "readout": readout}}), random_structure(5)
    both = random_structure(10)
    both.pos = torch.cat([piece.pos, piece.pos + 100])
    both.atomic_numbers = piece.atomic_numbers.repeat(2)
    energy = predict(model, Batch.from_data_list([piece, both]))["energy"]
    assert torch.isclose(energy[1], 2 * energy[0], rtol=1e-4) == is_extensive


def test_noise_in_angstrom():
    """With the noise's sigma as its scale the head moves atoms by the noise itself."""
    batch = random_batch()
    batch[ROWS] = {NOISE: every_atom(batch)}
    heads = [GRADIENT | {"noise": {"module": "egnn_noise_head", "scale": scale}} for scale in (1.0, 0.2)]
    plain, scaled = (stirred(ours(PLAIN, each)) for each in heads)
    scaled.load_state_dict(plain.state_dict())
    assert_close(predict(scaled, batch)[NOISE] * 0.2, predict(plain, batch)[NOISE], 1e-6)


@pytest.mark.parametrize(("heads", "is_differentiated"), [(GRADIENT, True), (DIRECT, False)])
def test_keeps_a_graph_only_for_gradients(heads, is_differentiated):
    model = ours(PLAIN, heads)
    with torch.no_grad():
        assert model.backbone(random_batch())["state"].scalars.requires_grad is is_differentiated


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        (PLAIN, "model.EGNN"),
        (DENS, "model.EGNNDeNS"),
        ("egnn_energy_head", "heads.EGNNEnergyHead"),
        ("egnn_gradient_head", "heads.EGNNGradientHead"),
        ("egnn_vector_head", "heads.EGNNVectorHead"),
        ("egnn_noise_head", "heads.EGNNNoiseHead"),
    ],
)
def test_registered_names(name, cls):
    assert registry.get_model_class(name) is registry.get_model_class(f"dens_plugin.backbones.egnn.{cls}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"otf_graph": False}, "leave `otf_graph` out"),
        ({"num_layers": 0}, "num_layers must be a whole number above 0, got 0"),
        ({"channels": 8.5}, "channels must be a whole number above 0, got 8.5"),
        ({"heads": {"energy": {"module": "egnn_energy_head", "readout": "atom"}}}, "did you mean 'atoms'"),
        ({"heads": {"other": {"module": "egnn_noise_head", "scale": 0}}}, "scale must be above 0"),
        ({"max_num_elements": 4}, "has atomic number"),
    ],
)
def test_misuse(changes, message):
    with pytest.raises(ValueError, match=message):
        ours(**changes)(random_batch())
