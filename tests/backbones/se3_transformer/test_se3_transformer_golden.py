"""Values of the SE(3)-Transformer of denoise pre-training on three molecules."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from fairchem.core.models.base import HydraModel
from relatives import TOLERANCE, assert_gradient_norms, assert_values, batch_of, cast, expected_of, loss_of

import dens_plugin.backbones.se3_transformer  # noqa: F401  (registers its names)
from dens_plugin.backbones.se3_transformer.keys import is_authors, to_plugin_keys
from dens_plugin.fields import NOISE
from dens_plugin.nn.se3_transformer.edges import EdgeGeometry, Edges
from dens_plugin.testing import assert_close, default_dtype

# The couplings whose sign a singular value decomposition gave otherwise where the file was made.
FLIPPED = {(1, 1, 0), (1, 1, 1), (1, 1, 2)}


@pytest.fixture
def reference(golden):
    return golden("relatives/denoise_se3transformer_seed71.pt")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def precision(request):
    with default_dtype(request.param):
        yield request.param


def model_of(reference):
    config = reference["config"]
    model = HydraModel(
        backbone={
            "model": "se3_transformer_plugin_backbone",
            "channels": config["num_channels"],
            "num_layers": config["num_layers"],
            "num_degrees": config["num_degrees"],
            "num_heads": config["n_heads"],
            "value_divisor": config["div"],
            "max_num_elements": config["atom_feature_size"],
        },
        heads={"energy": {"module": "se3_transformer_gradient_head"}},
        pass_through_head_outputs=True,
    )
    model.load_state_dict(to_plugin_keys(cast(reference["state_dict"]), FLIPPED))
    return model


def test_energies_and_forces(reference, precision):
    assert_values(model_of(reference)(batch_of(reference, ("energy", "forces"))), expected_of(reference))


@pytest.fixture
def holding_directions(monkeypatch):
    """Their noise: harmonics are constants, so that it is the gradient by distances alone."""
    kernels = EdgeGeometry.kernels

    def hold():
        monkeypatch.setattr(EdgeGeometry, "kernels", lambda self, vectors: kernels(self, vectors.detach()))

    return hold


def test_their_noise_holds_directions_constant(reference, precision, holding_directions):
    """The true gradient is the file's forces."""
    model, batch = model_of(reference), batch_of(reference, ("energy", "forces"))
    holding_directions()
    assert_close(model(batch)["forces"], expected_of(reference)["noise"], TOLERANCE[precision])


class _OnceDifferentiable(torch.autograd.Function):
    """The softmax of the library that the file was made with: a gradient's gradient does not pass through it."""

    @staticmethod
    def forward(ctx, logits, edges, softmax):
        shares = softmax(edges, logits)
        ctx.save_for_backward(shares)
        ctx.edges = edges
        return shares

    @staticmethod
    @torch.no_grad()
    def backward(ctx, gradient):
        (shares,) = ctx.saved_tensors
        weighed = shares * gradient
        return weighed - shares * ctx.edges.sum(weighed)[ctx.edges.target], None, None


def test_gradients_of_parameters(reference, precision, monkeypatch, holding_directions):
    """Of the file's loss, once differentiable where theirs was; `TestMolecules` has the true ones."""
    softmax = Edges.softmax
    monkeypatch.setattr(Edges, "softmax", lambda edges, logits: _OnceDifferentiable.apply(logits, edges, softmax))
    model, batch = model_of(reference), batch_of(reference, ("energy", "forces"))
    out = model(batch)
    holding_directions()
    out[NOISE] = model(batch)["forces"]
    expected, loss = expected_of(reference), loss_of(reference, out)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    loss.backward()
    gradients = dict(by_their_names(model))
    assert_gradient_norms(gradients, {name: expected["grad_norms"][name] for name in gradients})


def by_their_names(model):
    """Gradients of most parameters, of those of radial networks the slices of theirs."""
    for layer, name in product((0, 1), ("0", "1")):
        yield (
            f"Gblock.{2 * layer}.project.transform.{name}",
            model.get_parameter(f"backbone.layers.{layer}.project.{name}").grad,
        )
    yield "FCblock.0.weight", model.get_parameter("output_heads.energy.energy.first.weight").grad
    yield "Gblock.4.kernel_self.0", model.get_parameter("backbone.last.own.0").grad
    yield "Gblock.2.GMAB.q.transform.1", model.get_parameter("backbone.layers.1.attention.query.1").grad
    for (theirs, ours), (index, pair) in product(
        (("v", "value"), ("k", "key")), enumerate(("(0,0)", "(0,1)", "(1,0)", "(1,1)"))
    ):
        place, radial = (
            f"Gblock.2.GMAB.{theirs}.kernel_unary.{pair}.rp.net",
            f"backbone.layers.1.attention.{ours}.radial",
        )
        yield f"{place}.6.weight", model.get_parameter(f"{radial}.last.{index}.weight").grad
        yield f"{place}.3.weight", model.get_parameter(f"{radial}.second").grad[index]
        yield f"{place}.0.weight", model.get_parameter(f"{radial}.first").grad[index]


def test_is_recognised(reference):
    assert is_authors(reference["state_dict"])
    assert not is_authors(to_plugin_keys(reference["state_dict"], FLIPPED))
