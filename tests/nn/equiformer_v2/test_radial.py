from __future__ import annotations

import pytest
import torch
from so2_samples import LAYOUT

from dens_plugin.nn.equiformer_v2.radial import Radial, multiply, multiply_backward

pytestmark = pytest.mark.usefixtures("exact")
ROWS = {  # of the factors, for each coefficient
    "degrees": [degree for degree, _ in LAYOUT.coefficients],
    "degrees and orders": [0, 1, 2, 3, 4, 3, 4],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_factors_of_degrees_and_orders(rows):
    features = torch.randn(5, len(LAYOUT), 3, requires_grad=True)
    factors = torch.randn(5, max(rows) + 1, 3, requires_grad=True)
    expected = features * factors[:, rows]
    assert torch.allclose(multiply([features.detach()], factors.detach(), LAYOUT), expected)
    grad = torch.randn_like(expected)
    of_features, of_factors = torch.autograd.grad(expected, [features, factors], grad)
    assert torch.allclose(multiply_backward(grad, [features.detach()], factors.detach(), LAYOUT), of_factors)
    assert torch.allclose(grad, of_features)  # in place


def test_gradients_of_pieces_add_up():
    radial = Radial(*(torch.randn(*shape, requires_grad=True) for shape in [(5, 4), (6, 4), (6,)]))
    grad = torch.randn(5, 2, 3)
    expected = torch.autograd.grad(radial.factors(slice(None), 3), radial, grad)
    detached = Radial(*(part.detach() for part in radial))
    sums = detached.zeros()
    for piece in (slice(2), slice(2, 5)):
        detached.add_gradients(grad[piece], piece, sums)
    assert all(torch.allclose(found, part) for found, part in zip(sums, expected, strict=True))
