from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.painn.painn import PaiNN as FairchemsPaiNN
from torch_geometric.data import Batch, Data

import dens_plugin.backbones.painn  # noqa: F401  (registers its names)
from dens_plugin.backbones.painn.keys import to_plugin_keys
from dens_plugin.nn.painn.layers import GatedBlock
from dens_plugin.nn.pairs import one_of_two, open_pairs
from dens_plugin.testing import (
    BackboneContract,
    GradientForceContract,
    assert_close,
    corrupted_batch,
    default_dtype,
    predict,
    random_batch,
)

GOLDEN = Path(__file__).resolve().parents[3] / "shared/golden/relatives/fairchem_painn_seed82.pt"
SMALL = {
    "hidden_channels": 8,
    "num_layers": 2,
    "num_rbf": 8,
    "cutoff": 4.0,
    "max_neighbors": 40,
    "use_pbc": False,
    "form": "paper",
}
GRADIENT = {"energy": {"module": "painn_dens_gradient_head"}}
DIRECT = {"energy": {"module": "painn_dens_energy_head"}, "forces": {"module": "painn_dens_force_head"}}
NOISE_HEAD = {"noise": {"module": "painn_dens_noise_head"}}


def ours(heads=GRADIENT, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": "painn_dens_plugin_backbone", **SMALL, **changes},
        heads=heads | NOISE_HEAD,
        pass_through_head_outputs=True,
    ).eval()


class TestGradientForces(GradientForceContract):
    """Molecules, forces as gradients."""

    parts: ClassVar = (
        "backbone.atom_emb.embeddings.weight",
        "backbone.force_embedding.weight",
        "backbone.message_layers.0.x_proj.0.weight",
        "backbone.message_layers.0.rbf_proj.bias",
        "backbone.message_layers.1.rbf_proj.weight",
        "backbone.update_layers.0.vec_proj.weight",
        "backbone.update_layers.1.xvec_proj.2.weight",
        "output_heads.energy.out_energy.0.weight",
        "output_heads.noise.out_forces.output_network.0.vec2_proj.weight",
    )

    def build(self):
        return ours()


class TestOpenCatalystsForm(GradientForceContract):
    """Gradients of fairchem's network, where its own fail."""

    parts: ClassVar = (
        "backbone.message_layers.1.x_proj.0.weight",
        "backbone.message_layers.1.x_layernorm.weight",
        "backbone.update_layers.1.xvec_proj.2.weight",
    )

    def build(self):
        return ours(form="open_catalyst")


class TestDirectForces(BackboneContract):
    """Molecules, forces by a head of their own."""

    def build(self):
        return ours(DIRECT)


class TestPeriodicStructures(BackboneContract):
    """Crystals, which fairchem computes in float32; few neighbours, so that pairs must be completed."""

    tolerance: ClassVar = {torch.float32: 1e-3}

    def build(self):
        return ours(DIRECT, use_pbc=True, max_neighbors=12, form="open_catalyst")


class TestPeriodicGradients(BackboneContract):
    """Crystals, forces as gradients."""

    tolerance: ClassVar = {torch.float32: 1e-3}

    def build(self):
        return ours(use_pbc=True)


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden values are not here")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-6)])
def test_golden_values_of_fairchem(dtype, tolerance):
    """Outputs, and norms of all parameters' gradients; fairchem keeps its Gaussians' means in float32."""
    golden = torch.load(GOLDEN, weights_only=True)
    expected = golden[str(dtype).removeprefix("torch.")]
    with default_dtype(dtype):
        model = fairchems(golden["state_dict"], hidden_channels=32, num_rbf=16, cutoff=6.0, num_elements=20)
        inputs, weights = golden["inputs"], golden["loss_weights"]
        data = Batch.from_data_list(list(molecules(inputs["z"], inputs["pos"].to(dtype), inputs["batch"])))
        out = predict(model, data)
        loss = (weights["w_energy"].to(dtype) * out["energy"]).sum() + (
            weights["w_noise"].to(dtype) * out["forces"]
        ).sum()
        loss.backward()
    assert_close(out["energy"], expected["energy"], tolerance)
    assert_close(out["forces"], expected["noise"], tolerance)
    norms = {name: torch.tensor(value, dtype=dtype) for name, value in expected["grad_norms"].items()}
    found = dict(model.named_parameters())
    for name, norm in to_plugin_keys(norms).items():
        if name in found:
            assert found[name].grad.norm().item() == pytest.approx(norm.item(), rel=50 * tolerance), name


def fairchems(state, heads=DIRECT, **changes):
    """Our model with weights of fairchem's flat network."""
    model = HydraModel(
        backbone={"model": "painn_dens_plugin_backbone", **SMALL, "form": "open_catalyst", **changes},
        heads=heads,
        pass_through_head_outputs=True,
    )
    missing, unexpected = model.load_state_dict(to_plugin_keys(state), strict=False)
    assert missing == ["backbone.force_embedding.weight"]
    assert not unexpected
    return model


def molecules(numbers, pos, batch):
    for index in range(int(batch.max()) + 1):
        chosen = batch == index
        yield Data(atomic_numbers=numbers[chosen], pos=pos[chosen], natoms=int(chosen.sum()))


@pytest.mark.parametrize("max_neighbors", [50, 8])
def test_is_fairchems_on_crystals(max_neighbors):
    """Also where a limit of neighbours keeps one direction of a pair alone."""
    settings = {"hidden_channels": 8, "num_layers": 2, "num_rbf": 8, "cutoff": 4.0, "max_neighbors": max_neighbors}
    torch.manual_seed(0)
    reference = FairchemsPaiNN(**settings)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model, batch = fairchems(reference.state_dict(), use_pbc=True, num_elements=83, **settings), random_batch()
    expected, found = reference(batch.clone()), predict(model, batch)
    for name in ("energy", "forces"):
        assert_close(found[name], expected[name], 1e-5)


def test_pairs_are_all_within_the_cutoff():
    batch = random_batch((7, 1, 4, 10))
    first, second = open_pairs(batch.pos, batch.batch, batch.natoms, 4.0)
    near = torch.cdist(batch.pos, batch.pos) <= 4.0
    near &= batch.batch[:, None] == batch.batch
    expected = near.triu(1).nonzero().T
    assert torch.equal(torch.stack([first, second]), expected)


def test_one_of_two_keeps_each_pair_once():
    edges = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0]])
    cells = torch.tensor([[0.0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    assert one_of_two(edges, cells).tolist() == [True, False, False, True]


def test_a_limit_of_neighbours_holds_for_molecules():
    """The same as without where it does not bind, and other numbers where it does."""
    batch = random_batch((10,))
    wide, exact, narrow = (predict(ours(max_neighbors=most), batch)["energy"] for most in (40, 9, 3))
    assert torch.equal(wide, exact)
    assert not torch.allclose(wide, narrow)


def test_forces_go_to_zero_at_the_cutoff():
    """The energy of the paper's form has no jump there, that of fairchem's has."""
    jumps = []
    for form in ("paper", "open_catalyst"):
        with default_dtype(torch.float64):
            model = ours(form=form)
            for layer in model.backbone.message_layers:
                torch.nn.init.ones_(layer.rbf_proj.bias)  # zero at first
            inside, outside = (predict(model, pair(4.0 + step))["energy"].item() for step in (-1e-6, 1e-6))
        jumps.append(abs(inside - outside))
    assert jumps[0] < 1e-9 < 1e-7 < jumps[1]


def pair(distance):
    pos = torch.tensor([[0.0, 0, 0], [distance, 0, 0]])
    return Batch.from_data_list([Data(pos=pos, atomic_numbers=torch.tensor([6, 8]), natoms=2)])


def test_inference_is_the_plain_network():
    """The model without DeNS starts from the same weights, and predicts the same, bit for bit."""
    torch.manual_seed(0)
    plain = HydraModel(
        backbone={"model": "painn_plugin_backbone", **SMALL}, heads=GRADIENT, pass_through_head_outputs=True
    )
    first, second = predict(plain, random_batch()), predict(ours(), random_batch())
    assert all(torch.equal(first[name], second[name]) for name in ("energy", "forces"))


def test_encoding_starts_strong():
    """A force of 1 eV/Å is as large as the vectors that a layer makes of neighbours."""
    weight = ours().backbone.force_embedding.weight
    assert 0.3 < weight.abs().mean() < 0.7


def test_an_isolated_corrupted_atom_trains():
    model = ours().train()
    out = predict(model, corrupted_batch(random_batch((1, 1)), torch.tensor([True, False])))
    sum(value.sum() for value in out.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert not out["forces"].any()


def test_vectors_of_no_size_have_no_slope():
    block, scalars = GatedBlock(4, 2, "paper"), torch.randn(3, 4)
    vectors = torch.randn(3, 3, 4)
    vectors[1] = 0
    scalar_output, vector_output = block(scalars, vectors.requires_grad_())
    (scalar_output.sum() + vector_output.square().sum()).backward()
    assert torch.isfinite(block.vec1_proj.weight.grad).all()
    assert not vectors.grad[1].any()
    assert vectors.grad[0].any()


def test_leaves_the_batch_as_it_found_it():
    model, batch = ours(), random_batch()
    position, before = batch.pos, batch.pos.clone()
    first, second = model(batch), model(batch)
    assert batch.pos is position
    assert not position.requires_grad
    assert torch.equal(position, before)
    assert torch.equal(first["forces"], second["forces"])


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("painn_plugin_backbone", "model.PaiNN"),
        ("painn_dens_plugin_backbone", "model.PaiNNDeNS"),
        ("painn_dens_energy_head", "heads.PaiNNEnergyHead"),
        ("painn_dens_gradient_head", "heads.PaiNNGradientHead"),
        ("painn_dens_force_head", "heads.PaiNNForceHead"),
        ("painn_dens_noise_head", "heads.PaiNNNoiseHead"),
    ],
)
def test_registered_names(name, cls):
    assert registry.get_model_class(name) is registry.get_model_class(f"dens_plugin.backbones.painn.{cls}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"otf_graph": False}, "leave `otf_graph` out"),
        ({"rbf": {"name": "bernstein"}}, "rbf must be {name: gaussian}"),
        ({"envelope": {"name": "cosin"}}, "did you mean 'cosine'"),
        ({"envelope": {"name": "cosine", "exponent": 5}}, "unknown key 'exponent' in model.backbone.envelope"),
        ({"form": "papers"}, "unknown form 'papers' in model.backbone; did you mean 'paper'"),
        ({"hidden_channels": 7}, "hidden_channels must be even"),
    ],
)
def test_settings_that_do_not_exist(changes, message):
    with pytest.raises(ValueError, match=message):
        ours(**changes)
