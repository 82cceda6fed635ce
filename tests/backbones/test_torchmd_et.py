from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch, Data

import dens_plugin.backbones.torchmd_et
from dens_plugin.backbones.gradients import WithForces
from dens_plugin.backbones.torchmd_et.heads import TorchMDETReadoutHead
from dens_plugin.backbones.torchmd_et.keys import to_plugin_keys
from dens_plugin.testing import (
    BackboneContract,
    GradientForceContract,
    assert_close,
    corrupted_batch,
    default_dtype,
    predict,
    random_batch,
)

GOLDEN = Path(__file__).resolve().parents[3] / "shared/golden/relatives"
SMALL = {"embedding_dimension": 8, "num_layers": 2, "num_heads": 2, "num_rbf": 8, "cutoff": 4.0}
GRADIENT = {"energy": {"module": "torchmd_et_gradient_head"}}
DIRECT = {
    "energy": {"module": "torchmd_et_energy_head"},
    "forces": {"module": "torchmd_et_vector_head", "output_name": "forces"},
}
OUTPUT = "output.output_network"
NOISE_HEAD = {"noise": {"module": "torchmd_et_vector_head"}}


def ours(heads=GRADIENT, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": "torchmd_et_dens_plugin_backbone", **SMALL, **changes},
        heads=heads | NOISE_HEAD,
        pass_through_head_outputs=True,
    ).eval()


class TestGradientForces(GradientForceContract):
    """Molecules, forces as gradients."""

    parts: ClassVar = (
        "backbone.embedding.weight",
        "backbone.force_embedding.weight",
        "backbone.neighbor_embedding.distance_proj.weight",
        "backbone.attention_layers.0.q_proj.weight",
        "backbone.attention_layers.1.dv_proj.weight",
        "backbone.attention_layers.1.vec_proj.weight",
        "output_heads.energy.output.output_network.0.vec1_proj.weight",
        "output_heads.noise.output.output_network.0.vec2_proj.weight",
    )

    def build(self):
        return ours()


class TestSmoothVectors(GradientForceContract):
    """Vectors too end at the cutoff; Gaussians that are trained."""

    parts: ClassVar = ("backbone.distance_expansion.offset",)

    def build(self):
        return ours(vector_cutoff=True, rbf_type="gauss", trainable_rbf=True)


class TestDirectForces(BackboneContract):
    """Forces by a head of their own."""

    def build(self):
        return ours(DIRECT)


class TestPeriodicStructures(BackboneContract):
    """Crystals, which fairchem computes in float32."""

    tolerance: ClassVar = {torch.float32: 1e-3}

    def build(self):
        return ours(use_pbc=True, max_neighbors=30)


CASES = {
    "torchmdnet3_et_seed31": {},
    "torchmdnet3_et_vectorcutoff_seed32": {"vector_cutoff": True},
    "pvd_et_seed21": {},
    "pvd_et_whitened_seed22": {"layernorm_on_vec": "whitened"},
}


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden values are not here")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("case", CASES)
def test_golden_values(case, dtype, tolerance):
    """Energies, forces, noise, and norms of all parameters' gradients, of TorchMD-NET and of PVD."""
    golden = torch.load(GOLDEN / f"{case}.pt", weights_only=True)
    config, expected = golden["config"], golden[str(dtype).removeprefix("torch.")]
    names = ("embedding_dimension", "num_layers", "num_heads", "num_rbf", "rbf_type", "trainable_rbf")
    with default_dtype(dtype):
        model = HydraModel(
            backbone={
                "model": "torchmd_et_plugin_backbone",
                "cutoff": config["cutoff_upper"],
                **{name: config[name] for name in names},
                **CASES[case],
            },
            heads=GRADIENT | (NOISE_HEAD if "noise" in expected else {}),
            pass_through_head_outputs=True,
        )
        model.load_state_dict(to_plugin_keys(golden["state_dict"]))
        inputs, weights = golden["inputs"], golden["loss_weights"]
        mean, std = (golden["state_dict"][name].to(dtype) for name in ("mean", "std"))
        batch = Batch.from_data_list(list(molecules(inputs["z"], inputs["pos"].to(dtype), inputs["batch"])))
        out = with_noise(model, batch)
        out["energy"], out["forces"] = out["energy"] * std + mean, out["forces"] * std
        loss = sum((weights[f"w_{name}"].to(dtype) * value).sum() for name, value in out.items())
        loss.backward()
    for name in out:
        assert_close(out[name], expected[name], tolerance)
    norms = {name: torch.tensor(value, dtype=dtype) for name, value in expected["grad_norms"].items()}
    for name, norm in to_plugin_keys(norms).items():
        found = model.get_parameter(name).grad.norm().item()
        assert found == pytest.approx(norm.item(), rel=20 * tolerance, abs=20 * tolerance), name


@registry.register_model("readout_with_forces_of_a_test")
class _ReadoutWithForces(WithForces, TorchMDETReadoutHead):
    """The pre-training's energy, and the forces that its values come with."""


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden values are not here")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_golden_values_of_denoise_pretraining(dtype, tolerance):
    """Its network has a perceptron of the sum of scalars for an energy, and layers that nothing reads."""
    golden = torch.load(GOLDEN / "denoise_torchmd_et_seed53.pt", weights_only=True)
    config, expected = golden["config"], golden[str(dtype).removeprefix("torch.")]
    names = {"type_embedding.": "backbone.embedding.", "energy_head.0.": "output_heads.energy.energy.first."}
    names |= {"energy_head.2.": "output_heads.energy.energy.second.", "force_head.": f"output_heads.noise.{OUTPUT}."}
    with default_dtype(dtype):
        model = HydraModel(
            backbone={
                "model": "torchmd_et_plugin_backbone",
                "embedding_dimension": config["hidden_channels"],
                "cutoff": config["cutoff_upper"],
                "max_num_elements": config["max_atom_type"],
                **{name: config[name] for name in ("num_layers", "num_heads", "num_rbf", "rbf_type", "trainable_rbf")},
            },
            heads={"energy": {"module": "readout_with_forces_of_a_test"}, **NOISE_HEAD},
            pass_through_head_outputs=True,
        )
        renamed = lambda state: {  # noqa: E731
            next(
                (new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), f"backbone.{key}"
            ): value
            for key, value in state.items()
            if not key.startswith(("x_t_layers.", "vec_t_layers."))
        }
        model.load_state_dict(renamed(golden["state_dict"]))
        inputs, weights = golden["inputs"], golden["loss_weights"]
        batch = Batch.from_data_list(list(molecules(inputs["z"], inputs["pos"].to(dtype), inputs["batch"])))
        out = with_noise(model, batch)
        sum((weights[f"w_{name}"].to(dtype) * value).sum() for name, value in out.items()).backward()
    assert set(out) == {"energy", "forces", "noise"}
    for name in out:
        assert_close(out[name], expected[name], tolerance)
    for name, norm in renamed(expected["grad_norms"]).items():
        found = model.get_parameter(name).grad.norm().item()
        assert found == pytest.approx(norm, rel=20 * tolerance, abs=20 * tolerance), name


def with_noise(model, batch):
    """Also the noise, where the model has a head for it, which a batch without a record does not ask for."""
    for head in model.output_heads.values():
        head.auxiliary = False
    return predict(model, batch)


def molecules(numbers, pos, batch):
    for index in range(int(batch.max()) + 1):
        chosen = batch == index
        yield Data(atomic_numbers=numbers[chosen], pos=pos[chosen], natoms=int(chosen.sum()))


def test_published_size():
    """1,339,906 in TorchMD-NET's count, whose 64 numbers of the bases are none of a training's."""
    model = HydraModel(backbone={"model": "torchmd_et_plugin_backbone"}, heads=GRADIENT, pass_through_head_outputs=True)
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == 1_339_906


def test_inference_is_the_plain_network():
    """The model without DeNS starts from the same weights, and predicts the same, bit for bit."""
    torch.manual_seed(0)
    plain = HydraModel(
        backbone={"model": "torchmd_et_plugin_backbone", **SMALL}, heads=GRADIENT, pass_through_head_outputs=True
    )
    first, second = predict(plain, random_batch()), predict(ours(), random_batch())
    assert all(torch.equal(first[name], second[name]) for name in ("energy", "forces"))


def test_an_isolated_corrupted_atom_trains():
    model = ours().train()
    out = predict(model, corrupted_batch(random_batch((1, 1)), torch.tensor([True, False])))
    sum(value.sum() for value in out.values()).backward()
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.requires_grad)
    assert not out["forces"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "a multiple of num_heads, got 8 channels and 3 heads"),
        ({"rbf_type": "gaus"}, "did you mean 'gauss'"),
        ({"layernorm_on_vec": "white"}, "unknown layernorm_on_vec 'white'"),
        ({"otf_graph": False}, "leave `otf_graph` out"),
        ({"num_layers": 0}, "num_layers must be a whole number above 0"),
    ],
)
def test_settings_that_do_not_exist(changes, message):
    with pytest.raises(ValueError, match=message):
        ours(**changes)


@pytest.mark.parametrize("name", ["energy", "gradient", "vector"])
def test_registered_names(name):
    found = registry.get_model_class(f"torchmd_et_{name}_head")
    assert found is getattr(dens_plugin.backbones.torchmd_et, f"TorchMDET{name.title()}Head")
