from __future__ import annotations

import copy
import lzma
from typing import ClassVar

import ase.io
import fairchem.core.models.escn.escn  # noqa: F401  (registers the rival)
import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.models.base import HydraModel
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Batch

import dens_plugin
from dens_plugin.backbones.key_map import to_plain_keys, to_plugin_keys
from dens_plugin.fields import NOISE, ROWS, Rows
from dens_plugin.testing import (
    BackboneContract,
    assert_close,
    corrupted_batch,
    every_structure,
    predict,
    random_batch,
    random_structure,
)
from dens_plugin.training.warm_start import warm_start

SMALL = {
    "max_neighbors": 500,
    "cutoff": 5.0,
    "num_layers": 2,
    "sphere_channels": 16,
    "hidden_channels": 16,
    "edge_channels": 8,
    "lmax_list": [2],
    "mmax_list": [1],
    "num_sphere_samples": 512,
    "distance_resolution": 0.1,
    "basis_width_scalar": 2.0,
}
PLAIN_HEADS = {"energy": {"module": "escn_energy_head"}, "forces": {"module": "escn_force_head"}}


def flat(**changes):
    return dens_plugin.FlatESCNDeNS(**{**SMALL, **changes}).eval()


def fairchem_escn(**changes):
    backbone = {"model": "escn_backbone", "otf_graph": True, **SMALL, **changes}
    return HydraModel(backbone=backbone, heads=PLAIN_HEADS, pass_through_head_outputs=True).eval()


@torch.no_grad()
def lively(**changes):
    """With initial weights, what is not isotropic is 1e-4 of the features, and forces are mostly rounding."""
    model = flat(**changes)
    for name, parameter in model.named_parameters():
        if "layer_blocks" in name and parameter.dim() > 1:
            parameter.mul_(2)
        if "force_embedding" in name:
            parameter.mul_(1000)
    return model


class TestCoarseGrid(BackboneContract):
    """The paper's grids, which alias: eSCN is equivariant up to some percent, in any precision."""

    tolerance: ClassVar = {torch.float32: 5e-2}

    def build(self):
        return lively()


class TestHostsPath(BackboneContract):
    """fairchem's own forward."""

    tolerance: ClassVar = {torch.float32: 5e-2}

    def build(self):
        return lively(fast=False)


class TestFineGrid(BackboneContract):
    """Finer grids alias less; open boundaries, and every order (mmax = lmax)."""

    tolerance: ClassVar = {torch.float32: 2e-3}

    def build(self):
        return lively(resolution=24, mmax_list=[2], use_pbc=False)


def with_host(**changes):
    """Ours, and fairchem's own eSCN with the same weights."""
    ours, host = lively(**changes), fairchem_escn(**changes)
    host.load_state_dict(to_plain_keys(ours.state_dict()))
    return ours, host


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return with_host(lmax_list=[4], mmax_list=[2])


@pytest.fixture
def oc20(shared_data):
    """A batch of two real frames."""
    convert = AtomsToGraphs(r_energy=True, r_forces=True, r_edges=False, r_fixed=True, r_pbc=True)
    paths = sorted((shared_data / "oc20_mini" / "s2ef" / "val_id").glob("*.extxyz.xz"))[:2]
    frames = []
    for path in paths:
        with lzma.open(path, "rt") as file:
            frames.append(ase.io.read(file, index=0, format="extxyz"))
    return data_list_collater([convert.convert(frame) for frame in frames], otf_graph=True)


class TestHost:
    """fairchem's eSCN, whose sums are taken in another order."""

    def test_clean_batches(self, plain):
        self.check(*plain, random_batch())

    def test_real_frames(self, plain, oc20):
        self.check(*plain, oc20)

    @pytest.mark.parametrize("mmax", [0, 1, 4])
    def test_other_orders(self, mmax):
        self.check(*with_host(lmax_list=[4], mmax_list=[mmax]), random_batch())

    def test_only_the_rows_that_count(self, plain, oc20):
        """In training without DeNS, forces are those of fairchem on free atoms, and gradients are fairchem's."""
        ours, host = plain
        free = oc20.fixed == 0
        assert 0 < free.sum() < len(free)
        trained = copy.copy(oc20)
        trained[ROWS] = {"energy": every_structure(oc20), "forces": Rows(free, free.sum())}
        found, expected = predict(ours, trained), predict(host, oc20)
        assert_close(found["energy"], expected["energy"], 1e-5)
        assert_close(found["forces"][free], expected["forces"][free], 1e-5)
        assert not found["forces"][~free].any()
        (found["energy"].sum() + found["forces"].square().sum()).backward()
        (expected["energy"].sum() + expected["forces"][free].square().sum()).backward()
        gradients = dict(ours.named_parameters())
        for name, parameter in host.named_parameters():
            if parameter.requires_grad:
                assert_close(gradients[name].grad, parameter.grad, 1e-4)

    def check(self, ours, host, batch):
        found, expected = predict(ours, batch), predict(host, batch)
        assert expected["forces"].abs().max() > 1e-4
        for name in ("energy", "forces"):
            assert_close(found[name], expected[name], 1e-5)


def test_same_seed_gives_the_weights_of_a_model_without_dens():
    torch.manual_seed(1)
    ours = flat()
    torch.manual_seed(1)
    expected, found = fairchem_escn().state_dict(), to_plain_keys(ours.state_dict())
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_isolated_atom_beside_others():
    """Its energy is that of the atom alone, and it changes nothing for the others."""
    alone = random_structure(1)
    alone.cell = torch.eye(3)[None] * 60
    structure, model = random_structure(6, seed=1), lively()
    together, separate = (predict(model, Batch.from_data_list(data)) for data in ([structure, alone], [structure]))
    single = predict(model, Batch.from_data_list([alone]))
    assert_close(together["energy"], torch.cat([separate["energy"], single["energy"]]), 1e-5)
    assert_close(together["forces"][:6], separate["forces"], 1e-4)


def test_every_parameter_has_a_gradient_without_edges():
    """A batch of isolated atoms, all of them corrupted: zero gradients of the messages, and none missing."""
    alone = random_structure(1)
    alone.cell = torch.eye(3)[None] * 60
    model = flat()
    batch = corrupted_batch(Batch.from_data_list([alone, alone]), torch.ones(2, dtype=torch.bool))
    sum(value.square().sum() for value in predict(model, batch).values()).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    assert not gradients["backbone.layer_blocks.0.message_block.so2_block_source.fc1_m0.weight"].any()
    assert gradients["backbone.force_embedding.weight"].any()


def test_keeps_nothing_of_a_batch():
    """fairchem's model keeps the full Wigner matrices of its last batch."""
    model = flat()
    predict(model, random_batch())
    assert not hasattr(model.backbone, "SO3_edge_rot")


@pytest.mark.parametrize("fast", [True, False])
def test_nothing_is_left_of_a_forward_that_failed(fast):
    model, batch = flat(fast=fast), random_batch()
    expected = predict(model, batch)
    broken = copy.copy(batch)
    broken.atomic_numbers = torch.full_like(batch.atomic_numbers, 95)
    with pytest.raises(ValueError if fast else IndexError):
        predict(model, broken)
    assert not model.backbone.layer_blocks[0]._forward_pre_hooks
    assert torch.equal(predict(model, batch)["energy"], expected["energy"])


def test_state_dict_keys_map_from_all_layouts():
    ours, host = flat().state_dict(), fairchem_escn().state_dict()
    dens_only = {key for key in ours if key.startswith(("backbone.force_embedding.", "output_heads.noise."))}
    assert to_plugin_keys(ours).keys() == ours.keys()
    assert to_plugin_keys({f"module.{key}": value for key, value in host.items()}).keys() == ours.keys() - dens_only
    flat_names = {
        key.replace("output_heads.noise.force_block", "denoising_pos_block")
        .removeprefix("output_heads.energy.")
        .removeprefix("output_heads.forces.")
        .removeprefix("backbone.")
        for key in ours
    }
    assert to_plugin_keys(dict.fromkeys(flat_names)).keys() == ours.keys()


def test_warm_start_from_fairchems_escn(tmp_path):
    host = fairchem_escn()
    torch.save({"state_dict": {f"module.{k}": v for k, v in host.state_dict().items()}}, tmp_path / "plain.pt")
    ours = flat()
    encoding = ours.backbone.force_embedding.weight.clone()
    warm_start(ours, tmp_path / "plain.pt")
    weights = ours.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in host.state_dict().items())
    assert torch.equal(ours.backbone.force_embedding.weight, encoding)


def test_forces_are_encoded_by_the_authors_small_weights():
    """Of the same uniform numbers as in EquiformerV2, a thousandth."""
    weight = flat().backbone.force_embedding.weight
    assert 0.9e-3 < weight.abs().max() <= 1e-3


def test_noise_head_is_not_the_force_head():
    batch = random_batch()
    every = torch.ones(batch.num_nodes, dtype=torch.bool)
    corrupted = corrupted_batch(batch, every)
    corrupted[ROWS] = {"forces": Rows(every, every.sum()), NOISE: Rows(every, every.sum())}
    out = predict(flat(), corrupted)
    assert not torch.allclose(out["forces"], out[NOISE])


@pytest.mark.parametrize(
    "name",
    [
        "escn_dens",
        "escn_dens_plugin_backbone",
        "escn_dens_force_head",
        "escn_dens_noise_head",
        "dens_plugin.ESCNDeNS",
        "dens_plugin.ESCNNoiseHead",
    ],
)
def test_registered_names(name):
    assert registry.get_model_class(name).__module__ == "dens_plugin.backbones.escn.model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_grid": False}, "must be True"),
        ({"lmax_list": [2, 1], "mmax_list": [1, 1]}, "one resolution"),
        ({"activation_checkpoint": True}, "ignores activation_checkpoint"),
    ],
)
def test_refuses_what_it_cannot_do(settings, message):
    with pytest.raises(ValueError, match=message):
        flat(**settings)
