from __future__ import annotations

import pytest
import torch
from so2_samples import LAYOUT, convolved, weights_of

from dens_plugin.nn.equiformer_v2.convolution import Weights, convolution


@pytest.mark.usefixtures("exact")
def test_is_complex_multiplication():
    features, weights = torch.randn(5, len(LAYOUT), 2, requires_grad=True), weights_of(2, 3, extra=4)
    found = convolution(features, weights, LAYOUT)
    assert found.shape[1] == weights.width == 4 + len(LAYOUT) * 3
    assert torch.allclose(found, convolved(features, weights))
    inputs = (features, weights.bias, *weights.orders)
    assert torch.autograd.gradcheck(lambda f, b, *o: convolution(f, Weights(b, o), LAYOUT), inputs)


def test_reduced_precision_has_four_products():
    """Three of rounded operands lose an imaginary part that is small beside the real one; four do not."""
    features = torch.ones(1, len(LAYOUT), 1, dtype=torch.bfloat16)
    features[:, -LAYOUT.degrees_of(1) :] = 1e-3
    one = torch.cat([torch.eye(2), torch.zeros(2, 2)])
    weights = Weights(torch.zeros(3), [torch.eye(3), one]).to(torch.bfloat16)
    found = convolution(features, weights, LAYOUT)
    assert torch.equal(found.view_as(features), features)
