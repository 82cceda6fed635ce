from __future__ import annotations

from typing import ClassVar

import fairchem.core.models.equiformer_v2.equiformer_v2_dens  # noqa: F401  (registers the rival)
import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchems_dens import assert_same_numbers
from torch_geometric.data import Batch, Data

import dens_plugin
from dens_plugin.backbones.key_map import to_plain_keys, to_plugin_keys
from dens_plugin.fields import CORRUPTION, NOISE, ROWS, Corruption
from dens_plugin.testing import BackboneContract, corrupted_batch, predict, random_batch, rows_around

SMALL = {
    "max_neighbors": 500,
    "max_radius": 5.0,
    "num_layers": 2,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "norm_type": "layer_norm_sh",
    "lmax_list": [2],
    "mmax_list": [1],
    "grid_resolution": 14,
    "edge_channels": 8,
    "alpha_drop": 0.0,
    "drop_path_rate": 0.0,
    "weight_init": "uniform",
    "use_grid_mlp": True,
}
PLAIN_HEADS = {"energy": {"module": "equiformerV2_scalar_head"}, "forces": {"module": "equiformerV2_vector_head"}}


def flat(**changes):
    return dens_plugin.FlatEquiformerV2DeNS(**{**SMALL, **changes}).eval()


class TestGate(BackboneContract):
    """With the gate activation nothing is sampled on a grid, and equivariance is exact."""

    tolerance: ClassVar = {torch.float32: 1e-4}

    def build(self):
        return flat(use_gate_act=True, use_grid_mlp=False)


class TestGridActivation(BackboneContract):
    """The paper's activations on a grid of the sphere, which is equivariant up to aliasing in any precision."""

    tolerance: ClassVar = {torch.float32: 2e-2}

    def build(self):
        return flat()


class TestSharedRadial(BackboneContract):
    """The paper's other options: shared radial functions and edge embeddings, RMS norm, open boundaries."""

    def build(self):
        return flat(
            use_gate_act=True,
            use_grid_mlp=False,
            use_m_share_rad=True,
            share_atom_edge_embedding=True,
            norm_type="rms_norm_sh",
            use_pbc=False,
            activation_checkpoint=True,
        )


class TestHostsPath(BackboneContract):
    """The same network computed by fairchem's own code."""

    tolerance: ClassVar = {torch.float32: 2e-2}

    def build(self):
        return flat(fast=False)


@pytest.fixture
def plain():
    """fairchem's own EquiformerV2 with the weights of ours."""
    ours = flat(fast=False)
    host = HydraModel(
        backbone={"model": "equiformer_v2_backbone", **SMALL}, heads=PLAIN_HEADS, pass_through_head_outputs=True
    ).eval()
    host.load_state_dict(to_plain_keys(ours.state_dict()))
    return ours, host


def test_clean_batches_get_fairchems_numbers(plain):
    ours, host = plain
    batch = random_batch()
    for name in ("energy", "forces"):
        assert torch.equal(predict(ours, batch)[name], predict(host, batch)[name])


def test_same_seed_gives_the_weights_of_a_model_without_dens():
    torch.manual_seed(1)
    ours = flat()
    torch.manual_seed(1)
    host = HydraModel(
        backbone={"model": "equiformer_v2_backbone", **SMALL}, heads=PLAIN_HEADS, pass_through_head_outputs=True
    )
    expected, found = host.state_dict(), to_plain_keys(ours.state_dict())
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_fairchems_dens_gets_the_same_numbers():
    ours = flat()
    assert_same_numbers(ours, fairchem_dens(), with_fairchems_names(ours.state_dict()))


def with_fairchems_names(state):
    names = {
        "energy.energy_block": "energy.scalar_block",
        "forces.force_block": "forces.vector_block",
        "noise.force_block": "forces.denoising_pos_block",
    }
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    return state


def test_state_dict_keys_map_from_all_layouts():
    ours, host = flat().state_dict(), fairchem_dens().state_dict()
    assert to_plugin_keys({f"module.{key}": value for key, value in host.items()}).keys() == ours.keys()
    assert to_plugin_keys(ours).keys() == ours.keys()


def fairchem_dens():
    return HydraModel(
        backbone={"model": "equiformer_v2_dens_backbone", **SMALL},
        heads={"energy": {"module": "eqV2_DeNS_scalar_head"}, "forces": {"module": "eqV2_DeNS_vector_head"}},
        pass_through_head_outputs=True,
    ).eval()


def test_stress_head_beside_dens():
    model = HydraModel(
        backbone={"model": "dens_plugin.EquiformerV2DeNS", **SMALL},
        heads={
            "energy": {"module": "equiformerV2_scalar_head"},
            "forces": {"module": "dens_plugin.ForceHead"},
            "noise": {"module": "dens_plugin.NoiseHead"},
            "stress": {"module": "rank2_symmetric_head", "output_name": "stress"},
        },
        pass_through_head_outputs=True,
    )
    batch = random_batch()
    out = predict(model, corrupted_batch(batch, torch.arange(batch.num_nodes) % 2 == 0))
    assert out["stress"].shape == (9, 3)  # fairchem's layout: three rows per structure
    assert set(out) == {"energy", "forces", "noise", "stress"}


@pytest.mark.parametrize("name", ["equiformer_v2_dens", "dens_plugin.EquiformerV2DeNS", "dens_plugin.NoiseHead"])
def test_registered_names(name):
    assert registry.get_model_class(name).__module__ == "dens_plugin.backbones.equiformer_v2.model"


@pytest.mark.parametrize("option", ["use_tp_reparam", "use_noise_schedule_sigma_encoding"])
def test_refuses_options_that_do_not_exist(option):
    with pytest.raises(ValueError, match="must be False"):
        flat(**{option: True})


def test_refuses_several_resolutions():
    with pytest.raises(ValueError, match="one resolution"):
        flat(lmax_list=[2, 1], mmax_list=[1, 1])


class TestGolden:
    """Values of the authors' implementation; edge frames are drawn from the global state, as theirs."""

    @pytest.fixture(scope="class")
    def reference(self, golden):
        return golden("eqv2_dens_l3_allnbr.pt")

    @pytest.fixture(scope="class")
    def model(self, reference):
        switches = ("use_force_encoding", "use_denoising_energy")
        settings = {key: value for key, value in reference["config"].items() if key not in switches}
        model = dens_plugin.FlatEquiformerV2DeNS(**settings).eval()
        model.load_state_dict(to_plugin_keys(reference["state_dict"]))
        return model

    def batch(self, reference, pos):
        inputs = reference["inputs"]
        sizes = inputs["natoms"].tolist()
        columns = zip(pos.split(sizes), inputs["cell"], inputs["atomic_numbers"].split(sizes), sizes, strict=True)
        return Batch.from_data_list(
            [Data(pos=p, cell=cell[None], atomic_numbers=numbers, natoms=n) for p, cell, numbers, n in columns]
        )

    def test_normal(self, reference, model):
        out = predict(model, self.batch(reference, reference["inputs"]["pos"]))
        self.check(reference, "normal", out["energy"], out["forces"])

    @pytest.mark.parametrize("case", ["partial", "all"])
    def test_denoising(self, reference, model, case):
        inputs = reference["inputs"]
        mask = inputs["noise_mask"] if case == "partial" else torch.ones_like(inputs["noise_mask"])
        batch = self.batch(reference, inputs[f"pos_{case}"])
        encoded = torch.where(mask[:, None], inputs["forces"], torch.zeros(()))
        batch[CORRUPTION] = Corruption(mask, inputs[f"noise_vec_{case}"], torch.full((3,), inputs["std"]), encoded)
        batch[ROWS] = rows_around(mask, batch)
        out = predict(model, batch)
        self.check(reference, f"denoise_{case}", out["energy"], torch.where(mask[:, None], out[NOISE], out["forces"]))

    def check(self, reference, case, energy, vectors):
        """To rounding: the folded bias and the order of one sum differ from the authors' code."""
        expected = reference["outputs"][case]
        assert torch.allclose(energy, expected["energy"].view_as(energy), atol=1e-6)
        assert torch.allclose(vectors, expected["forces"], atol=5e-6)
