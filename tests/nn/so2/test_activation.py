from __future__ import annotations

import pytest
import torch
from so2_samples import LAYOUT, check
from torch.nn.functional import silu

from dens_plugin.nn.so2.activation import GateActivation, GridActivation, grid_silu
from dens_plugin.nn.so2.grid_matrix import GridMatrix

pytestmark = pytest.mark.usefixtures("exact")
SIZE = len(LAYOUT)


@pytest.mark.parametrize("num_edges", [5, 0])
def test_grid_silu(num_edges):
    to_grid, from_grid = GridMatrix(torch.randn(12, 9)), GridMatrix(torch.randn(12, 8))
    features = torch.randn(num_edges, 9, 3, requires_grad=True)
    check(
        lambda f: grid_silu(f, to_grid, from_grid),
        lambda f: from_grid.dense.T @ silu(to_grid.dense @ f),
        features,
    )


@pytest.mark.parametrize("is_separable", [True, False])
def test_grid_activation(is_separable):
    to_grid, from_grid = torch.randn(10, SIZE), torch.randn(10, SIZE)
    activation = GridActivation(GridMatrix(to_grid), GridMatrix(from_grid), is_separable)
    gates, features = torch.randn(5, activation.num_gates * 3), torch.randn(5, SIZE, 3)
    expected = from_grid.T @ silu(to_grid @ features)
    if is_separable:
        expected[:, 0] = silu(gates)
    convolved = torch.cat([gates, features.flatten(1)], dim=1)
    assert torch.allclose(activation(convolved, SIZE), expected)


def test_gate_activation():
    gates, features = torch.randn(5, 2 * 3), torch.randn(5, SIZE, 3)
    found = GateActivation(LAYOUT)(torch.cat([gates, features.flatten(1)], dim=1), SIZE)
    for row, (degree, _) in enumerate(LAYOUT.coefficients):
        of_row = features[:, row]
        gate = gates[:, 3 * (degree - 1) : 3 * degree]
        assert torch.allclose(found[:, row], silu(of_row) if degree == 0 else of_row * gate.sigmoid())
