from __future__ import annotations

import logging

import pytest
import test_equiformer_v2
import test_escn
import torch
from fairchem.core.common import gp_utils

from dens_plugin.backbones.forward_pass import Pass, require_directions, require_known_elements, require_sorted
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.testing import random_batch

LAYOUT = Layout(lmax=1, mmax=1)
EDGES = torch.tensor([[1, 0], [0, 1]])


def test_edges_live_from_rotation_to_the_next_batch():
    shared = Pass(LAYOUT)
    for packed in (torch.randn(2, 10), torch.randn(2, 10)):
        shared.begin(EDGES, num_atoms=2, num_graphs=1)
        with pytest.raises(RuntimeError, match="no forward pass is under way"):
            _ = shared.edges
        shared.rotate(packed)
        assert shared.edges.packed is packed
        assert (shared.edges.num_atoms, shared.num_graphs) == (2, 1)


def test_no_edges_before_a_batch():
    with pytest.raises(RuntimeError, match="call the backbone before"):
        _ = Pass(LAYOUT).edges


@pytest.mark.parametrize(("dtype", "found"), [(None, torch.float64), (torch.bfloat16, torch.bfloat16)])
def test_precision_of_an_edge(dtype, found):
    nodes = torch.zeros(1, dtype=torch.float64)
    assert Pass(LAYOUT, dtype).edge_dtype(nodes) == found
    with torch.autocast("cpu", torch.float16):
        assert Pass(LAYOUT, dtype).edge_dtype(nodes) == torch.float16


def test_graph_parallelism_has_none_and_says_so(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert Pass.unless_graph_parallel(LAYOUT) is not None
    assert not caplog.messages
    monkeypatch.setattr(gp_utils, "initialized", lambda: True)
    assert Pass.unless_graph_parallel(LAYOUT) is None
    (message,) = caplog.messages
    assert message.startswith("Under graph parallelism fairchem's own code computes")


def test_graph_parallelism_comes_before_the_model(monkeypatch):
    shared = Pass(LAYOUT)
    monkeypatch.setattr(gp_utils, "initialized", lambda: True)
    with pytest.raises(ValueError, match="set up before the model is built"):
        shared.begin(EDGES, num_atoms=2, num_graphs=1)


def test_edges_must_be_sorted_by_target():
    require_sorted(EDGES)
    with pytest.raises(ValueError, match=r"edge_index.* are not sorted by their targets; sort them"):
        require_sorted(EDGES.flip(1))


def test_edges_must_have_a_direction():
    batch = random_batch()
    first = int(batch.natoms[0])  # atoms of the structure before
    edge_index = torch.tensor([[0, first + 1], [1, first]])
    vectors = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    require_directions(batch, edge_index[:, :1], vectors[:1])
    with pytest.raises(ValueError, match=r"^atoms 1 and 0 of sid 1, fid 0 are 0 Å apart.*mend the positions"):
        require_directions(batch, edge_index, vectors)
    with pytest.raises(ValueError, match=r"are nan Å apart"):
        require_directions(batch, edge_index, vectors + torch.tensor([[0.0], [torch.nan]]))


def test_positions_must_be_finite():
    batch = random_batch()
    batch.pos[-1, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^sid .* has positions that are not finite"):
        require_directions(batch, EDGES[:, :0], torch.zeros(0, 3))


@pytest.mark.parametrize("flat", [test_equiformer_v2.flat, test_escn.flat], ids=["equiformer_v2", "escn"])
def test_models_ask_for_both(flat):
    batch, model = random_batch(), flat(fast=True)
    graph = model.backbone.generate_graph(batch)
    with pytest.raises(ValueError, match="edges need finite lengths"):
        model.backbone._init_edge_rot_mat(batch, graph.edge_index, torch.zeros_like(graph.edge_distance_vec))
    batch.atomic_numbers = torch.full_like(batch.atomic_numbers, 200)
    with pytest.raises(ValueError, match="has atomic number 200"):
        model(batch)


def test_elements_must_be_known():
    batch = random_batch()
    largest = int(batch.atomic_numbers.max())
    require_known_elements(batch, largest + 1)
    with pytest.raises(ValueError, match=rf"has atomic number {largest}, and .*max_num_elements is {largest};"):
        require_known_elements(batch, largest)
    batch.atomic_numbers[0] = -1
    with pytest.raises(ValueError, match="has atomic number -1"):
        require_known_elements(batch, largest + 1)
    batch.atomic_numbers = batch.atomic_numbers[:0]
    with pytest.raises(ValueError, match="the batch has no atoms"):
        require_known_elements(batch, largest + 1)
