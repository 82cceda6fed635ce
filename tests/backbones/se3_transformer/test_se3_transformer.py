from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch

import dens_plugin.backbones.se3_transformer  # noqa: F401  (registers its names)
from dens_plugin.backbones.gradients import GradientNoiseHead
from dens_plugin.fields import ROWS
from dens_plugin.testing import (
    BackboneContract,
    GradientForceContract,
    assert_close,
    every_atom,
    predict,
    random_batch,
    random_structure,
)

SMALL = {"channels": 4, "num_layers": 2, "num_degrees": 3, "value_divisor": 2, "cutoff": 4.0, "max_num_elements": 90}
PLAIN, DENS = "se3_transformer_plugin_backbone", "se3_transformer_dens_plugin_backbone"
GRADIENT = {"energy": {"module": "se3_transformer_gradient_head"}}
DIRECT = {"energy": {"module": "se3_transformer_energy_head"}, "forces": {"module": "se3_transformer_vector_head"}}
NOISE_HEAD = {"noise": {"module": "se3_transformer_noise_head"}}
GRADIENT_NOISE = {"noise": {"module": "gradient_noise_head"}}


def ours(backbone=DENS, heads=None, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": backbone, **SMALL, **changes},
        heads=heads or GRADIENT | (NOISE_HEAD if backbone == DENS else {}),
        pass_through_head_outputs=True,
    ).eval()


class TestMolecules(GradientForceContract):
    """Open boundaries."""

    parts: ClassVar = (
        "backbone.force_embedding.weight",
        "backbone.layers.0.attention.value.radial.last.1.weight",
        "backbone.layers.1.attention.key.radial.second",
        "backbone.layers.1.attention.query.1",
        "backbone.layers.1.project.0",
        "backbone.layers.1.nonlinearity.norms.0.weight",
        "backbone.last.own.0",
        "output_heads.energy.energy.second.weight",
        "output_heads.noise.convolution.own.1",
    )

    def build(self):
        return ours()


class TestDirectForces(BackboneContract):
    """Features of degree 1 instead of gradients."""

    def build(self):
        return ours(heads=DIRECT | NOISE_HEAD)


class TestNoiseAsAGradient(BackboneContract):
    """As in denoise pre-training."""

    def build(self):
        return ours(heads=GRADIENT | GRADIENT_NOISE)


class TestPeriodicStructures(BackboneContract):
    """Periodic boundaries, which fairchem computes in float32."""

    tolerance: ClassVar = {torch.float32: 1e-3}

    def build(self):
        return ours(use_pbc=True, max_neighbors=40)


def test_inference_is_the_plain_network():
    """The model without DeNS starts from the same weights, and predicts the same, bit for bit."""
    plain, dens, batch = ours(PLAIN), ours(), random_batch()
    first, second = predict(plain, batch), predict(dens, batch)
    assert all(torch.equal(first[name], second[name]) for name in ("energy", "forces"))


def test_does_not_depend_on_the_order_of_atoms():
    model, batch = ours(), random_batch((7,))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    other = batch.clone()
    other.pos, other.atomic_numbers = batch.pos[order], batch.atomic_numbers[order]
    first, second = predict(model, batch), predict(model, other)
    assert_close(second["energy"], first["energy"], 1e-5)
    assert_close(second["forces"], first["forces"][order], 1e-4)


@pytest.mark.parametrize("heads", [GRADIENT_NOISE, {"forces": DIRECT["forces"]}], ids=["noise", "forces"])
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


def test_elements_of_isolated_atoms_differ():
    structures = [random_structure(1), random_structure(1)]
    for structure, number in zip(structures, (1, 8), strict=True):
        structure.atomic_numbers = torch.tensor([number])
    first, second = predict(ours(), Batch.from_data_list(structures))["energy"]
    assert first != second


@pytest.mark.parametrize(("heads", "is_differentiated"), [(GRADIENT, True), (GRADIENT_NOISE, True), (DIRECT, False)])
def test_keeps_a_graph_only_for_gradients(heads, is_differentiated):
    model = ours(PLAIN, heads)
    with torch.no_grad():
        assert model.backbone(random_batch())["scalars"].requires_grad is is_differentiated


def test_gradient_noise_needs_scalars():
    with pytest.raises(ValueError, match="Linear leaves no scalars that can be differentiated"):
        GradientNoiseHead(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        (PLAIN, "se3_transformer.model.SE3Transformer"),
        (DENS, "se3_transformer.model.SE3TransformerDeNS"),
        ("se3_transformer_energy_head", "se3_transformer.heads.SE3TransformerEnergyHead"),
        ("se3_transformer_gradient_head", "se3_transformer.heads.SE3TransformerGradientHead"),
        ("se3_transformer_vector_head", "se3_transformer.heads.SE3TransformerVectorHead"),
        ("se3_transformer_noise_head", "se3_transformer.heads.SE3TransformerNoiseHead"),
        ("gradient_noise_head", "gradients.GradientNoiseHead"),
    ],
)
def test_registered_names(name, cls):
    assert registry.get_model_class(name) is registry.get_model_class(f"dens_plugin.backbones.{cls}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"otf_graph": False}, "leave `otf_graph` out"),
        ({"num_layers": 0}, "num_layers must be a whole number above 0, got 0"),
        ({"value_divisor": 3}, "value_divisor must divide the 4 channels, got 3"),
        ({"num_heads": 3}, "num_heads must divide the 2 channels of values, got 3"),
        ({"num_degrees": 1}, "num_degrees must be 2 or more"),
        ({"max_num_elements": 4}, "has atomic number"),
    ],
)
def test_misuse(changes, message):
    with pytest.raises(ValueError, match=message):
        ours(**changes)(random_batch())
