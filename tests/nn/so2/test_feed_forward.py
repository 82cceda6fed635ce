from __future__ import annotations

import pytest
import torch
from so2_samples import check
from torch.nn.functional import silu

from dens_plugin.nn.so2.feed_forward import DegreeLinear, grid_mlp

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


def test_linear_layers_of_degrees_fold():
    layer, other = DegreeLinear(torch.randn(3, 4, 2), torch.randn(4)), torch.randn(5, 4)
    features, degrees = torch.randn(6, 9, 2), [0, *[1] * 3, *[2] * 5]
    expected = torch.einsum("nmi,moi->nmo", features, layer.weight[degrees])
    expected[:, 0] += layer.bias
    assert torch.allclose(layer(features), expected)
    assert torch.allclose(layer.before(other)(features), expected @ other.T)
    behind, inputs = torch.randn(2, 3), torch.randn(6, 9, 3)
    assert torch.allclose(layer.after(behind)(inputs), layer(inputs @ behind.T))
