from __future__ import annotations

import logging

import pytest
import torch
from fairchem.core.common import gp_utils

from dens_plugin.backbones.forward_pass import Pass, require_sorted
from dens_plugin.nn.so2.layout import Layout

LAYOUT = Layout(lmax=1, mmax=1)
EDGES = torch.tensor([[1, 0], [0, 1]])


def test_edges_live_from_rotation_to_the_next_batch():
    shared = Pass(LAYOUT)
    for rotation in (torch.randn(2, 4, 4), torch.randn(2, 4, 4)):
        shared.begin(EDGES, num_atoms=2, num_graphs=1)
        with pytest.raises(RuntimeError, match="no forward pass is under way"):
            _ = shared.edges
        shared.rotate(rotation)
        assert shared.edges.rotation is rotation
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
    assert message.startswith("Graph parallelism leaves the fast path")


def test_graph_parallelism_comes_before_the_model(monkeypatch):
    shared = Pass(LAYOUT)
    monkeypatch.setattr(gp_utils, "initialized", lambda: True)
    with pytest.raises(ValueError, match="set up before the model is built"):
        shared.begin(EDGES, num_atoms=2, num_graphs=1)


def test_edges_must_be_sorted_by_target():
    require_sorted(EDGES)
    with pytest.raises(ValueError, match=r"edge_index.* are not sorted by their targets; sort them"):
        require_sorted(EDGES.flip(1))
