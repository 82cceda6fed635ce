from __future__ import annotations

import pytest
import torch
from so2_samples import LAYOUT, check, collected, graph, on_all_graphs

from dens_plugin.nn.so2.rotation import expand, rotate_back

pytestmark = pytest.mark.usefixtures("exact")


@on_all_graphs
def test_rotate_back(targets):
    edges, features = graph(targets), torch.randn(len(targets), len(LAYOUT), 3, requires_grad=True)
    check(lambda f: rotate_back(f, edges), lambda f: collected(f, edges), features)


@on_all_graphs
def test_expand(targets):
    edges, features = graph(targets), torch.randn(4, 9, 3)
    expected = edges.rotation @ features[edges.target]
    for piece in edges.pieces:
        assert torch.allclose(expand(features, edges, piece), expected[piece.edges])
