from __future__ import annotations

import pytest
import torch
from so2_samples import check
from torch.nn.functional import silu

from dens_plugin.nn.so2.grid_mlp import grid_mlp

pytestmark = pytest.mark.usefixtures("exact")


@pytest.mark.parametrize("num_nodes", [5, 0])
def test_grid_mlp(num_nodes):
    to_grid, from_grid = torch.randn(12, 9), torch.randn(12, 8)
    features, middle = torch.randn(num_nodes, 9, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    check(
        lambda f, m: grid_mlp(f, m, to_grid, from_grid),
        lambda f, m: from_grid.T @ silu(silu(to_grid @ f) @ m.T),
        features,
        middle,
    )


def test_grid_mlp_behind_gates():
    to_grid, from_grid, middle = torch.randn(12, 9), torch.randn(12, 8), torch.randn(3, 3)
    features, gates = torch.randn(5, 9, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    check(
        lambda f, g: grid_mlp(f, middle, to_grid, from_grid, g),
        lambda f, g: torch.cat([silu(g)[:, None], grid_mlp(f, middle, to_grid, from_grid)], dim=1),
        features,
        gates,
    )
