from __future__ import annotations

import pytest
import torch
from so2_samples import LAYOUT, check, convolved, weights_of

from dens_plugin.nn.equiformer_v2.convolution import Gradient, Weights, write_product

pytestmark = pytest.mark.usefixtures("twins_of_kernels")


def in_pieces(features, weights):
    """As on a CPU."""
    out = features.new_empty(len(features), weights.width)
    write_product(LAYOUT.orders_of(features), weights, LAYOUT, out)
    return out


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("num_scalars", [0, 4])
def test_whole_is_complex_multiplication(num_scalars):
    features, weights = torch.randn(5, len(LAYOUT), 2, requires_grad=True), weights_of(2, 3, extra=4)

    def found(features, bias, *orders):
        scalars, others = Weights(bias, orders).whole(features, LAYOUT, num_scalars)
        assert scalars.shape == (5, num_scalars)
        return torch.cat([scalars, others], dim=1)

    check(found, lambda f, b, *o: convolved(f, Weights(b, o)), features, weights.bias, *weights.orders)


@pytest.mark.usefixtures("exact")
def test_in_pieces_is_complex_multiplication():
    features, weights = torch.randn(5, len(LAYOUT), 2, requires_grad=True), weights_of(2, 3, extra=4)
    expected = convolved(features, weights)
    with torch.no_grad():
        assert torch.allclose(in_pieces(features, weights), expected)
        grad, of_features = torch.randn_like(expected), torch.empty_like(features)
        gradient = Gradient(weights, LAYOUT)
        gradient.write(grad, features, of_features)
    gradients = torch.autograd.grad(expected, [features, weights.bias, *weights.orders], grad)
    for a, b in zip([of_features, *gradient.of_weights()], gradients, strict=True):
        assert torch.allclose(a, b)


def test_reduced_precision_has_four_products():
    """Three of rounded operands lose an imaginary part that is small beside the real one; four do not."""
    features = torch.ones(1, len(LAYOUT), 1, dtype=torch.bfloat16)
    features[:, -LAYOUT.degrees_of(1) :] = 1e-3
    one = torch.cat([torch.eye(2), torch.zeros(2, 2)])
    weights = Weights(torch.zeros(3), [torch.eye(3), one]).to(torch.bfloat16)
    assert torch.equal(in_pieces(features, weights).view_as(features), features)
    assert torch.equal(weights.whole(features, LAYOUT)[1].view_as(features), features)


def test_gradients_in_reduced_precision():
    features, weights = torch.randn(9, len(LAYOUT), 8, requires_grad=True), weights_of(8, 8)
    inputs = [features, weights.bias, *weights.orders]
    expected = convolved(features, weights)
    found = weights.to(torch.bfloat16).whole(features.to(torch.bfloat16), LAYOUT)[1]
    grad = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True)
    assert all((a - b).norm() <= 2e-2 * b.norm() for a, b in pairs)
