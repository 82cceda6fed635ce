from __future__ import annotations

import pytest
import torch
from e3nn.o3 import FromS2Grid, ToS2Grid

from dens_plugin.nn.so2.grid_matrix import GridMatrix

LMAX, RESOLUTION = 3, (10, 9)
ORDERS = [m for degree in range(LMAX + 1) for m in range(-degree, degree + 1)]


def matrices():
    to_grid, from_grid = ToS2Grid(LMAX, RESOLUTION), FromS2Grid(RESOLUTION, LMAX)
    return [torch.einsum("mbi,am->bai", grid.shb, grid.sha) for grid in (to_grid, from_grid)]


def dense_of(matrix):
    return matrix.transpose(0, 1).flatten(0, 1)


def require_equal(found, matrix):
    dense, features = dense_of(matrix), torch.randn(4, len(ORDERS), 5)
    values = found.values(features)
    assert torch.allclose(values, dense @ features, atol=1e-5)
    out = torch.empty_like(features)
    found.write_coefficients(values, out)
    assert torch.allclose(out, dense.T @ values, atol=1e-4)


@pytest.mark.parametrize("matrix", matrices(), ids=["to", "from"])
def test_a_product(matrix):
    found = GridMatrix.of(matrix, ORDERS)
    assert found.latitude is not None
    assert torch.equal(found.dense, dense_of(matrix))
    require_equal(found, matrix)
    scalars = found.without_scalars()
    assert torch.allclose(
        scalars.values(torch.ones(1, len(ORDERS) - 1, 1))[0, :, 0], found.dense[:, 1:].sum(1), atol=1e-5
    )


def test_a_matrix_that_is_no_product_stays_whole():
    matrix = matrices()[0]
    matrix[2, 3, 5] += 0.1
    found = GridMatrix.of(matrix, ORDERS)
    assert found.latitude is None
    require_equal(found, matrix)


def test_orders_that_are_not_the_matrix_s():
    assert GridMatrix.of(matrices()[0], [*reversed(ORDERS[1:]), 0]).latitude is None


def test_a_reduced_precision_takes_the_matrix_whole():
    found = GridMatrix.of(matrices()[0], ORDERS)
    assert found.to(torch.float64).latitude.dtype == torch.float64
    assert found.to(torch.bfloat16).latitude is None
