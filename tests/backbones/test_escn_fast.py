"""The fast path of eSCN against fairchem's own forward: the same numbers, gradients and random draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fairchem.core.models.base import HydraModel
from test_escn import PLAIN_HEADS, SMALL, fairchem_escn, lively
from two_paths import a_corrupted_batch, assert_same_step, largest, step

from dens_plugin.backbones.key_map import to_plain_keys
from dens_plugin.backbones.packed_rotation import rotations
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.testing import cast, default_dtype, predict, random_batch

PAPER = {**SMALL, "lmax_list": [3], "mmax_list": [2], "num_sphere_samples": 32}
LONE_ATOMS = 1e-3  # their forces are rounding
OPTIONS = {
    "paper": {},
    "neighbour limit": {"max_neighbors": 4, "cutoff": 12.0},
    "all orders": {"mmax_list": [3]},
    "order zero": {"mmax_list": [0]},
    "finer grid": {"resolution": 12},
    "sigmoids of the distance": {"distance_function": "sigmoid"},
    "distances below zero": {"distance_function": "silu"},
    "sigmoids with a slope": {"distance_function": "linearsigmoid"},
    "unequal widths": {"hidden_channels": 24, "edge_channels": 20},
    "one layer": {"num_layers": 1},
    "open boundaries": {"use_pbc": False},
    "few edges": {"cutoff": 1.5},
    "no edges": {"cutoff": 0.2},
}


def both(**changes):
    """The model on fairchem's path and on the fast one, with the same weights, none of which is as initialised."""
    host = lively(**PAPER | changes, fast=False)
    fast = lively(**PAPER | changes)
    fast.load_state_dict(host.state_dict())
    return host, fast


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_gives_fairchems_numbers(changes):
    host, fast = both(**changes)
    batch = a_corrupted_batch()
    assert_same_step(step(fast, batch), step(host, batch), outputs=1e-5, gradients=1e-4, rounding=LONE_ATOMS)


def test_in_double_precision():
    """To rounding, on the edges of a graph in single precision: fairchem's neighbour search has no other."""
    batch = a_corrupted_batch()
    with default_dtype(torch.float64):
        models = both()
    edges = models[0].backbone.float().generate_graph(batch)
    edges = dataclasses.replace(
        edges, edge_distance=edges.edge_distance.double(), edge_distance_vec=edges.edge_distance_vec.double()
    )
    with default_dtype(torch.float64):
        for model in models:
            model.load_state_dict(models[0].state_dict())
            model.double().backbone.generate_graph = lambda _: edges
        host, fast = (step(model, cast(batch, torch.float64)) for model in models)
    assert_same_step(fast, host, outputs=1e-12, gradients=1e-11, rounding=LONE_ATOMS)


def test_does_not_depend_on_the_size_of_its_pieces(monkeypatch):
    _, fast = both()
    batch = a_corrupted_batch()
    expected = step(fast, batch)
    for name in ("escn.first_layer._CPU_EDGES", "so2.rotated_edges._CPU_EDGES", "so2.activation._GRID_BYTES"):
        monkeypatch.setattr(f"dens_plugin.nn.{name}", 3)
    assert_same_step(step(fast, batch), expected, outputs=1e-5, gradients=1e-4, rounding=LONE_ATOMS)


def test_a_run_may_change_its_path():
    """Alternating between the paths for some steps ends where fairchem's path alone does."""
    batch = a_corrupted_batch()
    (host, fast), (alone, _) = both(), both()
    alone.load_state_dict(host.state_dict())
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.01)
    mixed = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (host, fast)]
    for number in range(4):
        step(alone, batch, seed=number)
        optimizer.step()
        model, other = (host, fast) if number % 2 else (fast, host)
        step(model, batch, seed=number)
        mixed[0 if number % 2 else 1].step()
        other.load_state_dict(model.state_dict())
    pairs = list(zip(alone.parameters(), host.parameters(), strict=True))
    assert all(largest(found, expected) < 1e-4 for expected, found in pairs)
    started = both()[0].parameters()
    assert any(not torch.equal(now, then) for (now, _), then in zip(pairs, started, strict=True))


def test_fairchems_heads_work_behind_it():
    _, fast = both()
    host = fairchem_escn(**PAPER)
    backbone = {"model": "dens_plugin.ESCNDeNS", "otf_graph": True, **PAPER}
    mixed = HydraModel(backbone=backbone, heads=PLAIN_HEADS, pass_through_head_outputs=True).eval()
    state = to_plain_keys(fast.state_dict())
    host.load_state_dict(state)
    mixed.load_state_dict(state, strict=False)
    batch = random_batch()
    expected, found = predict(host, batch), predict(mixed, batch)
    assert all(largest(found[name], expected[name]) < 1e-5 for name in expected)


def test_gives_fairchems_node_features():
    host, fast = both()
    batch = random_batch()
    results = []
    for model in (host, fast):
        torch.manual_seed(0)
        results.append(model.backbone(batch))
    expected, found = results
    assert expected.keys() == found.keys()
    assert largest(found["node_embedding"].embedding, expected["node_embedding"].embedding) < 1e-5
    assert found["node_embedding"].lmax_list == expected["node_embedding"].lmax_list
    assert largest(found["sphere_values"], expected["sphere_values"]) < 1e-5


def test_rotations_take_a_frame_to_its_axes():
    """Rows of degree 1, whose coefficients fairchem orders (y, z, x), are those of the frame's own matrix."""
    frames = torch.linalg.qr(torch.randn(5, 3, 3, dtype=torch.float64))[0]
    frames = frames * torch.linalg.det(frames)[:, None, None]
    layout = Layout(1, 1)
    rows = dict(zip(layout.coefficients, rotations(frames, layout).split([1, 3, 3, 3], dim=1), strict=True))
    of_degree_one = torch.stack([rows[1, m] for m in (-1, 0, 1)], dim=1)
    assert torch.allclose(of_degree_one, frames)


def test_nan_in_is_nan_out():
    _, fast = both()
    with torch.no_grad():
        fast.backbone.layer_blocks[0].message_block.so2_block_source.fc1_m0.weight[0, 0] = torch.nan
    assert predict(fast, random_batch())["energy"].isnan().all()


def test_reduced_precision_errs_no_more_than_fairchems():
    """Under autocast fairchem rounds the same features, and bfloat16 is not the exact result."""
    host, fast = both()
    batch = random_batch()
    expected = predict(host, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = predict(host, batch), predict(fast, batch)
        gradients = step(fast, a_corrupted_batch())[1]
    for name in expected:
        assert 1e-6 < largest(found[name].float(), expected[name]) < 2 * largest(rounded[name].float(), expected[name])
    assert all(grad.isfinite().all() for grad in gradients.values() if grad is not None)
