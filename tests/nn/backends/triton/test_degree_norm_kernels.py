from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import DEVICE, needs_triton, random, relative

from dens_plugin.nn.backends.triton.degree_norm import normed, normed_backward
from dens_plugin.nn.equiformer_v2.degree_norm import balance


@needs_triton
@pytest.mark.parametrize("is_separate", [True, False])
@pytest.mark.parametrize(("atoms", "lmax", "channels"), [(3, 2, 5), (300, 0, 2), (2, 6, 16), (0, 1, 4)])
def test_triton_is_the_formula(atoms, lmax, channels, is_separate):
    of_squares = balance(lmax, channels, 1e-3, kind="degrees", is_separate=is_separate, device=DEVICE)
    features = 2 + random(atoms, (lmax + 1) ** 2, channels)
    weights, bias = (random(channels), random(lmax, channels)), random(channels, seed=3)
    exact = [tensor.double().requires_grad_() for tensor in (features, *weights, bias)]
    expected = kernel_twins.normed(exact[0], of_squares.double(), exact[1:3], exact[3], is_separate=is_separate)
    grad = random(*expected.shape, seed=7)
    found = normed(features, of_squares, weights, bias, is_separate=is_separate)
    of_features, of_affine = normed_backward(grad, features, of_squares, weights, is_separate=is_separate)
    gradients = torch.autograd.grad(expected, exact, grad.double())
    assert relative(found, expected) <= 1e-6
    for ours, theirs in zip((of_features, of_affine[0], of_affine[1:-1], of_affine[-1]), gradients, strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) <= 3e-6


@needs_triton
def test_triton_keeps_nan_at_its_atom():
    features = random(3, 4, 2)
    features[1, 3, 1] = torch.nan
    of_squares = balance(1, 2, 1e-5, kind="degrees", is_separate=False, device=DEVICE)
    out = normed(features, of_squares, (random(2), random(1, 2)), random(2), is_separate=False)
    assert out.isnan().any(2).any(1).tolist() == [False, True, False]
