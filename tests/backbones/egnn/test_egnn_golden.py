"""Values of the codes of EGNN's authors and of denoise pre-training on three molecules."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.models.base import HydraModel
from relatives import assert_gradient_norms, assert_values, batch_of, cast, expected_of, loss_of
from torch import nn

import dens_plugin.backbones.egnn  # noqa: F401  (registers its names)
from dens_plugin.backbones.egnn.keys import is_authors, layer_keys, to_plugin_keys
from dens_plugin.nn.egnn.edges import Edges
from dens_plugin.nn.egnn.layer import Layer
from dens_plugin.testing import default_dtype

PRECISIONS = [torch.float32, torch.float64]


@pytest.fixture(params=PRECISIONS, ids=["float32", "float64"])
def precision(request):
    with default_dtype(request.param):
        yield request.param


class TestDenoisePretraining:
    """Energy, forces, noise, and gradients of their sum in all parameters."""

    @pytest.fixture
    def reference(self, golden):
        return golden("relatives/denoise_egnn_seed51.pt")

    def model(self, reference, *, constant_length=True):
        config = reference["config"]
        model = HydraModel(
            backbone={
                "model": "egnn_plugin_backbone",
                "channels": config["hidden_channels"],
                "num_layers": config["n_layers"],
                "constant_length": constant_length,
                "max_neighbors": config["max_num_neighbors"] + 1,
                "max_num_elements": config["max_atom_type"],
            },
            heads={"energy": {"module": "egnn_gradient_head"}, "noise": {"module": "egnn_noise_head"}},
            pass_through_head_outputs=True,
        )
        model.load_state_dict(to_plugin_keys(cast(reference["state_dict"]), by_kind=False))
        return model

    def test_values_and_gradients(self, reference, precision):
        model, batch, expected = self.model(reference), batch_of(reference), expected_of(reference)
        out = model(batch)
        assert_values(out, expected)
        loss = loss_of(reference, out)
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
        loss.backward()
        by_their_names = self.gradients(model, reference)
        assert_gradient_norms(by_their_names, expected["grad_norms"])

    def gradients(self, model, reference):
        """By their names: the keys of an identity that goes through the same renaming."""
        names = to_plugin_keys(reference["state_dict"], by_kind=False)
        found = {value.data_ptr(): name for name, value in names.items()}
        theirs = {name: found[value.data_ptr()] for name, value in reference["state_dict"].items()}
        return {name: model.get_parameter(ours).grad for name, ours in theirs.items()}

    def test_exact_forces_are_those_of_finite_differences(self, reference):
        """Theirs hold lengths constant; the file has both numbers for one component."""
        with default_dtype(torch.float64):
            forces = self.model(reference, constant_length=False)(batch_of(reference))["forces"]
        atom, component = reference["checks"]["force_fd_atom_component"]
        assert forces[atom, component].item() == pytest.approx(reference["checks"]["force_fd"], abs=1e-9)

    def test_embedding_by_kind(self, reference):
        """Their data sets number elements and charges together; neutral ones are found by atomic number."""
        state = reference["state_dict"]
        embedding = to_plugin_keys(state)["backbone.embedding.weight"]
        assert embedding.shape == (100, 32)
        for number, kind in {1: 10, 6: 3, 7: 17, 8: 21, 16: 26}.items():
            assert torch.equal(embedding[number], state["type_embedding.weight"][kind])
        assert not embedding[2].any()

    def test_is_recognised(self, reference):
        assert is_authors(reference["state_dict"])
        assert not is_authors(to_plugin_keys(reference["state_dict"]))


class Original(nn.Module):
    """Layers between linear maps, as the authors' own programs have them."""

    def __init__(self, state, config, **options):
        super().__init__()
        self.state = state
        self.layers = nn.ModuleList()
        for index in range(config["n_layers"]):
            mine = {k.split(f"gcl_{index}.")[1]: v for k, v in state.items() if f"gcl_{index}." in k}
            layer = Layer(config["hidden_nf"], **options)
            layer.load_state_dict(layer_keys(mine))
            self.layers.append(layer)

    def linear(self, name, values):
        return nn.functional.linear(values, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def through(self, scalars, edges):
        displacement = scalars.new_zeros(len(scalars), 3)
        for layer in self.layers:
            scalars, displacement, *_ = layer(scalars, displacement, edges)
        return scalars, displacement


def test_original_network(golden, precision):
    reference = golden("relatives/egnn_clean_seed43.pt")
    inputs, expected = reference["inputs"], expected_of(reference)
    network = Original(cast(reference["state_dict"]), reference["config"], constant_length=True)
    pos = inputs["pos"].to(precision).requires_grad_()
    target, source = inputs["edge_index"]
    edges = Edges.of(source, target, pos[target] - pos[source], len(pos))
    scalars, noise = network.through(network.linear("net.embedding_in", inputs["h0"].to(precision)), edges)
    atoms = network.linear("net.embedding_out", scalars)
    energy = atoms.new_zeros(3).index_add(0, inputs["batch"], atoms[:, 0])
    (gradient,) = torch.autograd.grad(energy.sum(), pos)
    assert_values({"energy": energy, "forces": -gradient, "noise": noise, "node_out": atoms}, expected)


def test_original_network_for_qm9(golden, precision):
    """Fully connected, with coordinates that stay; the file pads molecules to one size."""
    reference = golden("relatives/egnn_qm9_seed41.pt")
    inputs, expected = reference["inputs"], expected_of(reference)
    network = Original(cast(reference["state_dict"]), reference["config"], normalize=False, moves=False)
    pos = inputs["pos"].to(precision).requires_grad_()
    same = inputs["batch"][:, None] == inputs["batch"]
    target, source = (same & ~torch.eye(len(pos), dtype=torch.bool)).nonzero().T
    edges = Edges.of(source, target, pos[target] - pos[source], len(pos))
    features = inputs["h0"][inputs["padded_row"]].to(precision)
    scalars, displacement = network.through(network.linear("embedding", features), edges)
    atoms = network.linear("node_dec.2", nn.functional.silu(network.linear("node_dec.0", scalars)))
    pooled = atoms.new_zeros(3, atoms.shape[1]).index_add(0, inputs["batch"], atoms)
    energy = network.linear("graph_dec.2", nn.functional.silu(network.linear("graph_dec.0", pooled)))[:, 0]
    (gradient,) = torch.autograd.grad(energy.sum(), pos)
    assert_values({"energy": energy, "forces": -gradient}, expected)
    assert not displacement.any()
