from __future__ import annotations

import importlib
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch

import dens_plugin.backbones.equiformer  # noqa: F401  (registers its names)
from dens_plugin.backbones.equiformer.flat import FlatEquiformerDeNS
from dens_plugin.backbones.equiformer.keys import to_plugin_keys
from dens_plugin.backbones.equiformer.settings import backbone_settings
from dens_plugin.fields import NOISE, ROWS
from dens_plugin.testing import (
    BackboneContract,
    GradientForceContract,
    assert_close,
    cast,
    corrupted_batch,
    default_dtype,
    mixed_batch,
    mixed_loss,
    predict,
    random_batch,
    random_structure,
)

SMALL = {
    "channels": [8, 4, 4],
    "num_layers": 2,
    "num_heads": 2,
    "head_channels": [4, 2, 2],
    "ffn_channels": [8, 4, 4],
    "feature_channels": [16, 8, 4],
    "cutoff": 4.0,
    "num_radial_basis": 8,
    "radial_channels": [8],
    "max_num_elements": 90,
}
CUBIC = {
    "channels": [8, 4, 4, 2],
    "head_channels": [4, 2, 2, 1],
    "ffn_channels": [8, 4, 4, 2],
    "feature_channels": [16, 8, 8, 4],
}
L3 = {
    "channels": [128, 64, 64, 32],
    "head_channels": [32, 16, 16, 8],
    "ffn_channels": [384, 192, 192, 96],
    "feature_channels": [512, 256, 256, 128],
}
ENERGY = {"energy": {"module": "equiformer_gradient_head"}}
NOISE_HEAD = {"noise": {"module": "equiformer_noise_head"}}
PARTS = (
    "backbone.atom_embedding.weight",
    "backbone.edge_embedding.radial.out.weight",
    "backbone.force_embedding.weight",
    "backbone.blocks.0.attention.radial.hidden.0.weight",
    "backbone.blocks.1.feed_forward.contract.weight",
    "backbone.norm.weight",
    "output_heads.energy.out.weight",
    "output_heads.noise.block.project.weight",
)
PLAIN, DENS = "equiformer_plugin_backbone", "equiformer_dens_plugin_backbone"


def ours(backbone=DENS, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": backbone, **SMALL, **changes},
        heads=ENERGY | (NOISE_HEAD if backbone == DENS else {}),
        pass_through_head_outputs=True,
    ).eval()


class TestMolecules(GradientForceContract):
    """Open boundaries."""

    parts: ClassVar = (
        *PARTS,
        "backbone.blocks.0.attention.merge_source.weight",
        "backbone.blocks.0.attention.score_dot",
        "backbone.blocks.1.attention.value.weight",
    )

    def build(self):
        return ours()


class TestDegreeThree(BackboneContract):
    """L = 3."""

    def build(self):
        return ours(**CUBIC)


class TestPeriodicStructures(BackboneContract):
    """Periodic boundaries, which fairchem computes in float32."""

    tolerance: ClassVar = {torch.float32: 1e-3}

    def build(self):
        return ours(use_pbc=True, max_neighbors=30)


class TestSmoothCutoff(GradientForceContract):
    """Messages fade out."""

    parts: ClassVar = (*PARTS, "backbone.blocks.0.attention.score_dot")

    def build(self):
        return ours(smooth_cutoff=True)


@pytest.mark.parametrize("interaction", ["attention", "convolution"])
@pytest.mark.parametrize("others", [0, 2], ids=["pair", "molecule"])
def test_energy_and_forces_at_the_cutoff(interaction, others):
    """They jump in the published network, and do not with the option, when the last edge of an atom goes too."""
    jumps = {}
    with default_dtype(torch.float64):
        for smooth in (False, True):
            model, found = ours(interaction=interaction, smooth_cutoff=smooth), []
            for distance in (SMALL["cutoff"] - 1e-7, SMALL["cutoff"] + 1e-7):
                structure = random_structure(2 + others)
                structure.pos = torch.tensor([[0.0, 0, 0], [distance, 0, 0], [-1, 1, 0], [-1, -1, 0.5]])[: 2 + others]
                found.append(predict(model, cast(Batch.from_data_list([structure]), torch.float64)))
            inside, outside = found
            jumps[smooth] = [(inside[name] - outside[name]).abs().max().item() for name in ("energy", "forces")]
    assert jumps[False][0] > 1e-4
    assert max(jumps[True]) < 1e-6


class TestWithoutAttention(GradientForceContract):
    """Table 5, index 3 and 4."""

    parts: ClassVar = PARTS

    def build(self):
        return ours(interaction="convolution")


class TestWithoutAttentionAndNorm(BackboneContract):
    """Table 5, index 5 and 6."""

    tolerance: ClassVar = {torch.float32: 1e-3, torch.float64: 1e-9}

    def build(self):
        return ours(interaction="convolution", norm="none", weight_init="uniform")


def test_inference_is_the_plain_network():
    """The model without DeNS starts from the same weights, and predicts the same, bit for bit."""
    plain, dens, batch = ours(PLAIN), ours(), random_batch()
    first, second = predict(plain, batch), predict(dens, batch)
    assert all(torch.equal(first[name], second[name]) for name in ("energy", "forces"))


def test_inference_computes_scalars_alone():
    """The last features above degree 0 exist for the noise head only."""
    model, (batch, corrupted) = ours(), mixed_batch()
    assert len(model.backbone(batch)["features"]) == 1
    assert len(model.backbone(corrupted)["features"]) == 3


@pytest.mark.parametrize("use_pbc", [False, True])
def test_leaves_the_batch_as_it_found_it(use_pbc):
    model, batch = ours(use_pbc=use_pbc), random_batch()
    tensors, before = {key: batch[key] for key in ("pos", "cell")}, batch.clone()
    first, second = model(batch), model(batch)
    for key, tensor in tensors.items():
        assert batch[key] is tensor
        assert torch.equal(tensor, before[key])
        assert not tensor.requires_grad
    assert torch.equal(first["forces"], second["forces"])


def test_validation_gives_the_forces_of_training():
    """Under `torch.no_grad`, as fairchem validates, and after it training goes on."""
    model, batch = ours(), random_batch()
    with torch.no_grad():
        validated = predict(model, batch)
    assert_close(validated["forces"], predict(model.train(), batch)["forces"], 1e-5)


def test_an_isolated_atom_does_not_notice_its_company():
    isolated = random_structure(1)
    alone, beside = Batch.from_data_list([isolated]), Batch.from_data_list([isolated, random_structure(5, seed=1)])
    model = ours()
    assert torch.allclose(predict(model, alone)["energy"][0], predict(model, beside)["energy"][0], atol=1e-6)


def test_an_isolated_corrupted_atom_trains():
    out = predict(ours().train(), corrupted_batch(random_batch((1, 1)), torch.tensor([True, False])))
    assert torch.isfinite(out[NOISE]).all()
    assert not out["forces"].any()


@pytest.mark.parametrize(
    ("backbone", "changes", "parameters", "published"),
    [
        (PLAIN, {}, 3_496_001, 3.50e6),
        (DENS, {}, 4_000_321, 4.00e6),
        (PLAIN, L3, 5_500_865, 5.50e6),
        (DENS, L3, 6_353_985, 6.35e6),
    ],
)
def test_published_sizes(backbone, changes, parameters, published):
    """Table 4, of which defaults are the first two rows."""
    model = HydraModel(
        backbone={"model": backbone, **changes},
        heads=ENERGY | (NOISE_HEAD if backbone == DENS else {}),
        pass_through_head_outputs=True,
    )
    assert model.num_params == parameters
    assert parameters == pytest.approx(published, rel=2e-3)


@pytest.fixture
def twins(monkeypatch):
    """For a degree: the straightforward network on e3nn, and ours with its weights."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    twin = importlib.import_module("equiformer_twin")

    def build(lmax, layers):
        settings = SMALL if lmax == 2 else SMALL | CUBIC
        torch.manual_seed(0)
        reference = twin.EquiformerTwin(
            **{f"irreps_{theirs}": irreps(settings[name]) for theirs, name in NAMES.items()},
            num_layers=layers,
            num_heads=2,
            number_of_basis=8,
            fc_neurons=[8, 8],
            max_radius=4.0,
            elements=90,
        )
        model = ours(**settings | {"radial_channels": [8, 8], "num_layers": layers})
        model.load_state_dict(to_plugin_keys(reference.state_dict(), settings["channels"]))
        return reference, model

    return build


NAMES = {
    "node_embedding": "channels",
    "feature": "feature_channels",
    "head": "head_channels",
    "mlp_mid": "ffn_channels",
}


def irreps(channels):
    return "+".join(f"{count}x{degree}e" for degree, count in enumerate(channels))


@pytest.mark.parametrize(("lmax", "layers"), [(2, 2), (3, 1)])
def test_is_the_straightforward_network(twins, lmax, layers):
    """Outputs and gradients, of a mixed batch."""
    with default_dtype(torch.float64):
        reference, model = twins(lmax, layers)
        _, batch = mixed_batch()
        for one in (reference, model):
            mixed_loss(one, batch).backward()
        expected, out = reference(batch), predict(model, batch)
    assert_close(out["energy"], expected["energy"], 1e-10)
    for name in ("forces", NOISE):
        mask = batch[ROWS][name].mask
        assert_close(out[name][mask], expected[name][mask], 1e-10)
    for name, expected_gradient in gradients_by_our_names(reference, model).items():
        assert_close(model.get_parameter(name).grad, expected_gradient, 1e-9)


def gradients_by_our_names(reference, model):
    """Reordered and signed as weights are; a bias that is folded into another has that one's gradient."""
    gradients = {name: value.grad for name, value in reference.named_parameters() if value.grad is not None}
    gradients["force_embed.bias.0"] = torch.zeros_like(gradients["force_embed.bias.0"])
    named = to_plugin_keys(reference.state_dict() | gradients, model.backbone.atom_embedding.channels)
    assert named.keys() == dict(model.named_parameters()).keys()
    return named


class TestFlat:
    AUTHORS: ClassVar = {
        "irreps_node_embedding": "8x0e+4x1e+4x2e",
        "irreps_feature": "16x0e+8x1e+4x2e",
        "irreps_head": "4x0e+2x1e+2x2e",
        "irreps_mlp_mid": "8x0e+4x1e+4x2e",
        "num_layers": 2,
        "num_heads": 2,
        "max_radius": 4.0,
        "number_of_basis": 8,
        "fc_neurons": [8],
    }

    def test_is_the_same_network(self):
        flat = FlatEquiformerDeNS(**self.AUTHORS, norm_layer=None, irreps_sh="1x0e+1x1e+1x2e")
        same = ours(norm="none", max_num_elements=64)
        assert {n: p.shape for n, p in flat.named_parameters()} == {n: p.shape for n, p in same.named_parameters()}

    def test_defaults_are_the_backbones(self):
        assert backbone_settings({}) == {}
        assert FlatEquiformerDeNS().num_params == 4_000_321

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"irreps_head": "4x0e+2x1o+2x2e"}, "irreps_head: .* must be of even parity"),
            ({"irreps_sh": "1x0e+1x1e"}, "irreps_sh: .* must be '1x0e\\+1x1e\\+1x2e' or left out"),
            ({"basis_type": "gaussian"}, "basis_type: gaussian is not supported; it must be exp"),
            ({"alpha_drop": 0.1}, "alpha_drop: 0.1 is not supported"),
            ({"use_force_encoding": False}, "use_force_encoding: False is not supported"),
        ],
    )
    def test_options_that_do_not_exist(self, changes, message):
        with pytest.raises(ValueError, match=message):
            FlatEquiformerDeNS(**self.AUTHORS | changes)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        (PLAIN, "Equiformer"),
        (DENS, "EquiformerDeNS"),
        ("equiformer_gradient_head", "EquiformerGradientHead"),
        ("equiformer_noise_head", "EquiformerNoiseHead"),
    ],
)
def test_registered_names(name, cls):
    assert registry.get_model_class(name) is registry.get_model_class(f"dens_plugin.backbones.equiformer.{cls}")


class TestMisuse:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"otf_graph": False}, "leave `otf_graph` out"),
            ({"head_channels": [4, 2]}, r"head_channels must have a number for each of the 3 degrees"),
            ({"channels": [8]}, "channels must have a number for degree 0, degree 1"),
            ({"channels": 32}, r"channels must be a list of whole numbers above 0.* got 32"),
            ({"channels": [8, 0, 4]}, r"channels must be a list of whole numbers above 0"),
            ({"head_channels": "4,2,2"}, r"head_channels must be a list of whole numbers above 0"),
            ({"ffn_channels": [8, 4.0, 4]}, r"ffn_channels must be a list of whole numbers above 0"),
            ({"radial_channels": 5}, r"radial_channels must be a list of whole numbers above 0.* got 5"),
            ({"num_layers": 1.5}, r"num_layers must be a whole number above 0, got 1.5"),
            ({"interaction": "atention"}, "did you mean 'attention'"),
            ({"norm": "graph"}, "unknown norm 'graph'; allowed are layer, none"),
            ({"weight_init": "xavier"}, "allowed are normal, uniform"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            ours(**changes)

    def test_noise_head_on_the_plain_backbone(self):
        with pytest.raises(ValueError, match=r"use the backbone dens_plugin\.EquiformerDeNS"):
            HydraModel(backbone={"model": PLAIN, **SMALL}, heads=ENERGY | NOISE_HEAD)


def test_energies_without_forces():
    """A head of its own for data without forces: the same weights, the same energies."""
    batch = random_batch()
    torch.manual_seed(0)
    alone = HydraModel(
        backbone={"model": PLAIN, **SMALL},
        heads={"energy": {"module": "equiformer_energy_head"}},
        pass_through_head_outputs=True,
    )
    out = predict(alone, batch)
    assert set(out) == {"energy"}
    assert torch.equal(out["energy"], predict(ours(PLAIN), batch)["energy"])
