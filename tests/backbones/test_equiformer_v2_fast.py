"""The fast path against fairchem's own forward: the same numbers, gradients and random draws."""

from __future__ import annotations

import logging

import pytest
import torch
from fairchem.core.common import gp_utils
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.drop import GraphDropPath
from fairchem.core.models.equiformer_v2.so3 import SO3_Rotation
from fairchem.core.models.equiformer_v2.transformer_block import SO2EquivariantGraphAttention
from test_equiformer_v2 import PLAIN_HEADS, SMALL, flat
from torch import nn
from two_paths import a_corrupted_batch, assert_same_step, largest, step

from dens_plugin.backbones.equiformer_v2 import fast as equiformer_v2_fast
from dens_plugin.backbones.equiformer_v2.fast import (
    FastDropPath,
    FastFeedForward,
    FastGraphAttention,
    FastRotation,
    use_fast_path,
)
from dens_plugin.backbones.forward_pass import Pass
from dens_plugin.backbones.grids import grid_matrix
from dens_plugin.backbones.key_map import to_plain_keys
from dens_plugin.nn.equiformer_v2 import attention, message
from dens_plugin.nn.equiformer_v2.convolution import Gradient
from dens_plugin.nn.so2 import rotated_edges
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.testing import predict, random_batch

PAPER = {**SMALL, "lmax_list": [3], "mmax_list": [2], "alpha_drop": 0.1, "drop_path_rate": 0.3, "proj_drop": 0.1}
OPTIONS = {
    "paper": {},
    "neighbour limit": {"max_neighbors": 4, "max_radius": 12.0},
    "shared radial, shared embeddings, RMS norm": {
        "use_m_share_rad": True,
        "share_atom_edge_embedding": True,
        "norm_type": "rms_norm_sh",
    },
    "no element embeddings, layer norm": {"use_atom_edge_embedding": False, "norm_type": "layer_norm"},
    "grid activation": {"use_grid_mlp": False},
    "not separable": {"use_sep_s2_act": False},
    "neither": {"use_sep_s2_act": False, "use_grid_mlp": False},
    "gates": {"use_gate_act": True, "use_grid_mlp": False},
    "gates, grid MLP": {"use_gate_act": True},
    "no renormalised attention": {"use_attn_renorm": False},
    "all orders": {"mmax_list": [3]},
    "order zero": {"mmax_list": [0]},
    "checkpointed": {"activation_checkpoint": True},
    "open boundaries": {"use_pbc": False},
    "few edges": {"max_radius": 1.5},
}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Several even of these small graphs."""
    monkeypatch.setattr(rotated_edges, "_CPU_EDGES", 50)
    monkeypatch.setattr(equiformer_v2_fast, "_INFERENCE_NUMBERS", 20_000)


def both(**changes):
    """The model on fairchem's path and on the fast one, with the same weights, none of which is as initialised."""
    models = [flat(**PAPER | changes, fast=fast) for fast in (False, True)]
    generator = torch.Generator().manual_seed(2)
    for parameter in models[0].parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    models[1].load_state_dict(models[0].state_dict())
    return models


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_gives_fairchems_numbers(changes):
    host, fast = both(**changes)
    batch = a_corrupted_batch()
    assert_same_step(step(fast, batch), step(host, batch), outputs=1e-5, gradients=1e-4)


def test_a_run_may_change_its_path():
    """Alternating between the paths for some steps of AdamW ends where fairchem's path alone does."""
    batch = a_corrupted_batch()
    host, other = both()
    fast = flat(**PAPER, fast=True)
    fast.load_state_dict(host.state_dict())
    alone, mixed = (torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (host, other))
    for number in range(4):
        step(host, batch, seed=number)
        alone.step()
        if number % 2:
            step(other, batch, seed=number)
        else:
            fast.load_state_dict(other.state_dict())
            _, grads = step(fast, batch, seed=number)
            for name, parameter in other.named_parameters():
                parameter.grad = grads[name].clone()
        mixed.step()
    pairs = zip(host.parameters(), other.parameters(), strict=True)
    assert all((a - b).abs().max() < 1e-4 for a, b in pairs)


def test_fairchems_heads_work_behind_it():
    fast = flat(**PAPER, fast=True)
    host = HydraModel(backbone={"model": "equiformer_v2_backbone", **PAPER}, heads=PLAIN_HEADS).eval()
    mixed = HydraModel(backbone={"model": "dens_plugin.EquiformerV2DeNS", **PAPER}, heads=PLAIN_HEADS).eval()
    state = to_plain_keys(fast.state_dict())
    host.load_state_dict(state)
    mixed.load_state_dict(state, strict=False)
    batch = random_batch()
    expected, found = predict(host, batch), predict(mixed, batch)
    for name in expected:
        found_values, expected_values = (
            out[name][name] if isinstance(out[name], dict) else out[name] for out in (found, expected)
        )
        assert largest(found_values, expected_values) < 1e-5


@pytest.mark.parametrize("is_training", [False, True])
def test_without_gradients_the_same(is_training):
    """Though a few edges at a time go through a whole block."""
    batch = a_corrupted_batch()
    model = flat(**PAPER, fast=True).train(is_training)
    torch.manual_seed(3)
    expected = model(batch)
    torch.manual_seed(3)
    with torch.no_grad():
        found = model(batch)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_a_head_refuses_the_embedding_of_an_earlier_batch():
    model = flat(**PAPER, fast=True).eval()
    batch, another = random_batch(), random_batch(seed=7)
    embedding = model.backbone(batch)
    model.backbone(another)
    with pytest.raises(ValueError, match="its backbone has seen another since"):
        model.output_heads["forces"](batch, embedding)


def test_training_after_a_forward_pass_in_inference_mode():
    model = flat(**PAPER, fast=True)
    with torch.inference_mode():
        model.eval()(random_batch())
    grid = model.backbone.SO3_grid[3][2].to_grid_mat
    assert not grid_matrix(grid, model.backbone.shared.layout).dense.is_inference()
    step(model, a_corrupted_batch())


@pytest.mark.parametrize("changes", [{}, {"use_grid_mlp": False}, {"use_gate_act": True, "use_grid_mlp": False}])
def test_backward_within_autocast(changes):
    batch, model = a_corrupted_batch(), flat(**PAPER | changes, fast=True).train()
    gradients = []
    for is_within in (False, True):
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum((out.float() ** 2).sum() for out in model(batch).values())
            if is_within:
                loss.backward()
        if not is_within:
            loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert largest(*gradients) < 0.05


def test_nan_in_is_nan_out():
    batch = random_batch()
    fast = flat(**PAPER, fast=True).eval()
    with torch.no_grad():
        fast.backbone.blocks[0].ga.so2_conv_1.fc_m0.weight[0, 0] = torch.nan
    assert predict(fast, batch)["energy"].isnan().all()


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_reduced_precision_errs_no_more_than_fairchems(precision):
    """Under autocast fairchem rounds the same features, and more of them; and bfloat16 is not the exact result."""
    host, _ = both()
    fast = flat(**PAPER, fast=True, precision="bf16" if precision == "bf16" else "fp32")
    fast.load_state_dict(host.state_dict())
    batch = random_batch()
    expected = predict(host.eval(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = predict(host, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = predict(fast.eval(), batch)
    for name in expected:
        assert 1e-5 < largest(found[name].float(), expected[name]) < 2 * largest(rounded[name].float(), expected[name])
    assert all(grad.isfinite().all() for grad in step(fast, a_corrupted_batch())[1].values() if grad is not None)


@pytest.mark.parametrize(("text", "is_fast"), [("false", False), ("True", True)])
def test_the_command_line_may_switch_it(text, is_fast):
    """fairchem's parser leaves these words as text."""
    assert (flat(fast=text).backbone.shared is not None) == is_fast
    with pytest.raises(ValueError, match=r"model.backbone.fast must be true or false, got 'no'"):
        flat(fast="no")


def test_refuses_precisions():
    with pytest.raises(ValueError, match="precision must be one of fp32, tf32, bf16, got 'fp8'"):
        flat(precision="fp8")
    for precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=f"{precision} needs the fast path"):
            flat(precision=precision, fast=False)


def test_tf32_is_of_its_models_edges_alone(monkeypatch, caplog):
    """In both passes, and neither before nor behind them, nor in another model of the process."""
    seen = []

    def seeing(function):
        def wrapped(*inputs):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return function(*inputs)

        return wrapped

    for owner, name in ((message, "write_product"), (attention, "write_product"), (Gradient, "write")):
        monkeypatch.setattr(owner, name, seeing(getattr(owner, name)))
    batch = a_corrupted_batch()
    for precision, is_allowed in (("tf32", True), ("fp32", False)):
        model = flat(**PAPER, precision=precision)
        seen.clear()
        for _ in range(2):
            step(model, batch)
        assert len(seen) > 4
        assert set(seen) == {is_allowed}
        assert not torch.backends.cuda.matmul.allow_tf32
    assert caplog.text.count("tf32 exists only on CUDA") == 1


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drops_the_structures_that_fairchem_drops(probability, dtype):
    """And leaves the generator where fairchem leaves it."""
    shared = Pass(Layout(lmax=1, mmax=1))
    shared.begin(torch.zeros(2, 0, dtype=torch.long), num_atoms=40, num_graphs=20)
    paths = nn.ModuleList([GraphDropPath(probability)])
    use_fast_path(paths, shared)
    (fast,) = paths
    assert type(fast) is FastDropPath
    x, batch = torch.randn(40, 4, 3, dtype=dtype), torch.arange(20).repeat_interleave(2)
    found, expected = ((seeded(path, x, batch), torch.rand(1)) for path in (fast, GraphDropPath(probability)))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert fast.eval()(x, batch) is x


def seeded(path, x, batch):
    torch.manual_seed(1)
    return path(x, batch)


def types_of(model):
    return {type(module) for module in model.modules()}


def test_graph_parallelism_keeps_fairchems_modules_and_says_so_once(monkeypatch, caplog):
    """Of those that need edges; `test_distributed.py` compares the numbers of ranks that share a graph."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(gp_utils, "initialized", lambda: True)
    model = flat(**PAPER, fast=True)
    (message,) = [text for text in caplog.messages if "fast path" in text]
    assert message.startswith("Under graph parallelism fairchem's own code computes")
    types = types_of(model)
    assert {SO3_Rotation, GraphDropPath, FastFeedForward} <= types
    assert not {FastRotation, FastDropPath, FastGraphAttention} & types
    assert any(issubclass(found, SO2EquivariantGraphAttention) for found in types)


def test_a_model_alone_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    assert {FastRotation, FastDropPath, FastFeedForward, FastGraphAttention} <= types_of(flat(**PAPER, fast=True))
    assert not {FastRotation, FastDropPath, FastFeedForward, FastGraphAttention} & types_of(flat(**PAPER, fast=False))
    assert not [text for text in caplog.messages if "fast path" in text]


def test_heads_of_other_degrees_are_refused():
    model = flat(**PAPER, fast=True)
    predict(model, random_batch())
    (rotation,) = model.backbone.SO3_rotation
    edges = rotation.shared.edges
    features = torch.randn(len(edges.source), 16, 2)
    there = rotation.rotate(features, 3, 2)
    assert there.shape == (len(edges.source), len(edges.layout), 2)
    with pytest.raises(ValueError, match=r"lmax=3, mmax=2.*lmax=3, mmax=3"):
        rotation.rotate(features, 3, 3)
