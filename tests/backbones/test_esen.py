from __future__ import annotations

import copy
from typing import ClassVar

import fairchem.core.models.esen.esen_dens  # noqa: F401  (registers the rival)
import pytest
import torch
from e3nn import o3
from experiments import CONFIGS, model_of, read
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchems_dens import assert_same_numbers
from torch_geometric.data import Batch

import dens_plugin
from dens_plugin.backbones.esen.polar_edges import frames_without_waiting
from dens_plugin.fields import ROWS
from dens_plugin.testing import (
    BackboneContract,
    GradientForceContract,
    assert_close,
    cast,
    corrupted_batch,
    default_dtype,
    predict,
    random_batch,
    random_structure,
    rotated,
)

SMALL = {
    "max_num_elements": 90,
    "sphere_channels": 8,
    "lmax": 2,
    "mmax": 2,
    "cutoff": 4.0,
    "edge_channels": 8,
    "num_distance_basis": 8,
    "num_layers": 2,
    "hidden_channels": 8,
    "act_type": "gate",
    "mlp_type": "spectral",
    "use_envelope": True,
}
DIRECT = {"energy": {"module": "dens_plugin.ESENEnergyHead"}, "forces": {"module": "dens_plugin.ESENForceHead"}}
GRADIENT = {"energy_forces": {"module": "dens_plugin.ESENGradientHead"}}
HOST = {
    "direct": {"energy": {"module": "esen_mlp_energy_head"}, "forces": {"module": "esen_linear_force_head"}},
    "gradient": {"energy_forces": {"module": "esen_mlp_efs_head"}},
}
OURS = {"direct": DIRECT, "gradient": GRADIENT}
FORMS = pytest.mark.parametrize("form", ["direct", "gradient"])


def ours(form, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": "dens_plugin.ESENDeNS", **SMALL, **changes},
        heads={**OURS[form], "noise": {"module": "dens_plugin.ESENNoiseHead"}},
        pass_through_head_outputs=True,
    ).eval()


def host(form, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": "esen_backbone", "otf_graph": True, **SMALL, **changes},
        heads=HOST[form],
        pass_through_head_outputs=True,
    ).eval()


def precise(form, **changes):
    """In float64, where fairchem has no periodic graphs; without a grid, on which energies depend on edge frames."""
    return ours(form, use_pbc=False, **changes)


class TestDirect(BackboneContract):
    """Direct forces; with gates nothing is sampled on a grid, and equivariance is exact."""

    def build(self):
        return precise("direct", distance_function="bessel")


class TestDirectOnGrid(BackboneContract):
    """fairchem's default activations, equivariant up to aliasing, in periodic structures."""

    tolerance: ClassVar = {torch.float32: 2e-2}

    def build(self):
        return ours("direct", act_type="s2", mlp_type="grid", grid_resolution=14, use_envelope=False)


class TestGradient(GradientForceContract):
    """Forces as gradients."""

    parts: ClassVar = (
        "backbone.sphere_embedding.weight",
        "backbone.force_embedding.weight",
        "backbone.edge_degree_embedding.rad_func.net.0.weight",
        "backbone.blocks.0.edge_wise.so2_conv_1.fc_m0.weight",
        "backbone.blocks.1.atom_wise.so3_linear_1.weight",
        "backbone.norm.affine_weight",
        "output_heads.energy_forces.energy_block.2.weight",
        "output_heads.noise.linear.weight",
    )

    def build(self):
        return precise("gradient")


class TestGradientInPeriodicStructures(BackboneContract):
    """The same with stress, periodic boundaries and recomputed activations."""

    tolerance: ClassVar = {torch.float32: 1e-3}

    def build(self):
        return ours("gradient", regress_stress=True, activation_checkpointing=True)


@FORMS
@pytest.mark.parametrize("changes", [{}, {"act_type": "s2", "mlp_type": "grid"}, {"regress_stress": True}])
def test_clean_batches_get_fairchems_numbers(form, changes):
    """Bit for bit, from the same seed: what DeNS adds draws no random number."""
    batch = random_batch()
    found, expected = predict(ours(form, **changes), batch), predict(host(form, **changes), batch.clone())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@FORMS
def test_state_dict_is_fairchems_and_what_dens_adds(form):
    found, expected = ours(form).state_dict(), host(form).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert found.keys() - expected.keys() == {
        "backbone.force_embedding.weight",
        "output_heads.noise.linear.weight",
        "output_heads.noise.linear.bias",
        "output_heads.noise.linear.expand_index",
    }


def test_noise_head_leaves_later_heads_their_random_numbers():
    backbone, state = ours("direct").backbone, torch.random.get_rng_state()
    dens_plugin.ESENNoiseHead(backbone)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fairchems_dens_gets_the_same_numbers():
    """Its direct form; of its gradient form the energies are zero and so are the forces."""
    model = ours("direct")
    rival = HydraModel(
        backbone={"model": "esen_backbone_dens", "otf_graph": True, **SMALL},
        heads={
            "energy": {"module": "esen_mlp_energy_head"},
            "forces": {"module": "esen_linear_force_head_dens"},
        },
        pass_through_head_outputs=True,
    ).eval()
    theirs = {key.replace("noise.linear", "forces.denoising_linear"): v for key, v in model.state_dict().items()}
    assert_same_numbers(model, rival, theirs)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("tilt", [0.0, 1e-4, 3e-3])
def test_forces_of_bonds_along_the_y_axis(sign, tilt):
    """Where fairchem takes a bond's direction for constant: the forces are those of the structure turned elsewhere."""
    with default_dtype(torch.float64):
        model, rotation = precise("gradient"), o3.rand_matrix()
        batch = cast(structure_with_a_bond_near_the_y_axis(tilt), torch.float64)
        batch.pos = batch.pos * sign
        here, elsewhere = predict(model, batch), predict(model, rotated(batch, rotation))
        assert_close(here["energy"], elsewhere["energy"], 1e-9)
        assert_close(here["forces"] @ rotation.T, elsewhere["forces"], 1e-9)


def structure_with_a_bond_near_the_y_axis(tilt):
    batch = Batch.from_data_list([random_structure(4)])
    batch.pos = torch.tensor([[0, 0, 0], [tilt, 2.2, 0], [1.7, 0.4, 0.3], [-0.5, 1.0, 1.9]])
    return batch


@pytest.mark.parametrize("tilt", [0.0, 0.05])
def test_edge_frames_under_autocast(tilt):
    """They are those of float32: in bf16 a bond at 1.3° could not be told from the axis."""
    vectors = structure_with_a_bond_near_the_y_axis(tilt).pos[1:]
    backbone = ours("gradient").backbone
    torch.manual_seed(0)
    expected = backbone.get_rotmat_and_wigner(vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        assert all(map(torch.equal, backbone.get_rotmat_and_wigner(vectors), expected))


@FORMS
def test_trains_under_bf16_autocast(form):
    model, batch = ours(form).train(), structure_with_a_bond_near_the_y_axis(0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = predict(model, corrupted_batch(batch, torch.tensor([False, False, True, False])))
        sum(value.square().sum() for value in out.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_stress_is_the_derivative_by_strain():
    model = ours("gradient", regress_stress=True)
    batch = random_batch((6,))
    strain = torch.zeros(3, 3)
    strain[0, 1] = strain[1, 0] = 0.5e-2

    def energy(sign):
        strained = copy.copy(batch)
        deformation = torch.eye(3) + sign * strain
        strained.pos, strained.cell = batch.pos.detach() @ deformation, batch.cell @ deformation
        return predict(model, strained)["energy"].item()

    stress = predict(model, batch)["stress"].view(3, 3)
    volume = torch.det(batch.cell[0]).abs().item()
    assert (energy(1) - energy(-1)) / 2e-2 / volume == pytest.approx(stress[0, 1].item(), rel=2e-2)


@FORMS
@pytest.mark.parametrize("regress_stress", [False, True])
def test_leaves_the_batch_as_it_found_it(form, regress_stress):
    """Also for a second call, by which a relaxation would notice."""
    model, batch = ours(form, regress_stress=regress_stress), random_batch()
    tensors, before = {key: batch[key] for key in ("pos", "cell")}, batch.clone()
    first = {name: value.detach() for name, value in model(batch).items()}
    for key, tensor in tensors.items():
        assert torch.equal(batch[key], before[key])
        assert not batch[key].requires_grad
        assert not tensor.requires_grad
    second = model(batch)
    assert_close(second["forces"], first["forces"], 1e-4)  # the edge frames are others


@FORMS
def test_an_isolated_atom_does_not_notice_its_company(form):
    """fairchem leaves out all blocks for a batch without any edge; here the atom gets the same energy in both."""
    isolated = random_structure(1)
    isolated.cell = torch.eye(3)[None] * 60
    alone, beside = Batch.from_data_list([isolated]), Batch.from_data_list([isolated, random_structure(5, seed=1)])
    model, plain = ours(form), host(form)
    expected = predict(plain, beside.clone())["energy"][0]
    for batch in (alone, beside):
        assert torch.allclose(predict(model, batch)["energy"][0], expected, atol=1e-7)


def test_an_isolated_atom_trains_the_gradient_form():
    """No force, no stress, and zero gradients rather than none, as distributed training needs."""
    structure = random_structure(1)
    structure.cell = torch.eye(3)[None] * 60
    model = ours("gradient", regress_stress=True).train()
    batch = corrupted_batch(Batch.from_data_list([structure]), torch.tensor([False]))
    batch[ROWS]["stress"] = batch[ROWS]["energy"]
    out = predict(model, batch)
    assert not out["forces"].any()
    assert not out["stress"].any()
    sum(value.square().sum() for value in out.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_frames_without_waiting_are_fairchems():
    backbone = ours("direct").backbone
    vectors = torch.cat([torch.randn(50, 3), torch.eye(3), -torch.eye(3)])
    jd = [getattr(backbone, f"Jd_{degree}").float() for degree in range(backbone.lmax + 1)]
    torch.manual_seed(0)
    expected = backbone.get_rotmat_and_wigner(vectors)
    torch.manual_seed(0)
    for found, known in zip(frames_without_waiting(vectors, jd), expected, strict=True):
        assert_close(found, known, 1e-6)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("esen_dens_plugin_backbone", "ESENDeNS"),
        ("esen_dens_force_head", "ESENForceHead"),
        ("esen_dens_gradient_head", "ESENGradientHead"),
        ("esen_dens_noise_head", "ESENNoiseHead"),
    ],
)
def test_registered_names(name, cls):
    assert registry.get_model_class(name) is registry.get_model_class(f"dens_plugin.{cls}")
    assert registry.get_model_class(name) is getattr(dens_plugin, cls)


def test_configured_size_is_the_published_one():
    """Parameters of eSEN-30M-OAM in Matbench Discovery, to which DeNS adds its two parts."""
    model = model_of(read(CONFIGS / "experiment" / "esen" / "oc20_2m_2_gradient.yml"))
    names = dict(model.named_parameters())
    added = [name for name in names if name.startswith(("backbone.force_embedding", "output_heads.noise"))]
    assert len(added) == 3
    assert sum(value.numel() for name, value in names.items() if name not in added) == 30_161_153


class TestMisuse:
    def test_stored_neighbours(self):
        with pytest.raises(ValueError, match="leave `otf_graph` out"):
            ours("direct", otf_graph=False)

    def test_direct_head_beside_gradients(self):
        with pytest.raises(ValueError, match=r"use dens_plugin\.ESENGradientHead alone"):
            ours("direct", direct_forces=False)

    def test_gradient_head_without_forces(self):
        with pytest.raises(ValueError, match="needs a backbone with `regress_forces: true`"):
            ours("gradient", regress_forces=False)
