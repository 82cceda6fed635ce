from __future__ import annotations

import pytest
import torch
from e3nn import o3

from dens_plugin.nn.spherical_harmonics import spherical_harmonics


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("lmax", [0, 1, 3, 6, 8])
def test_are_e3nns(lmax, dtype, tolerance):
    vectors = 3 * torch.randn(200, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    degrees = list(range(lmax + 1))
    expected = o3.spherical_harmonics(degrees, vectors.double(), normalize=True, normalization="component")
    found = spherical_harmonics(vectors, lmax)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= tolerance * (1 if lmax < 8 else 4)


def test_of_no_direction():
    vectors = torch.zeros(2, 3, requires_grad=True)
    found = spherical_harmonics(vectors, 2)
    assert found.tolist() == 2 * [[1.0] + 8 * [0.0]]
    assert torch.autograd.grad(found.sum(), vectors)[0].isfinite().all()
