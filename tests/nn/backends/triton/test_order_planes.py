from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import needs_triton, random

from dens_plugin.nn.backends.triton.order_planes import join, spread
from dens_plugin.nn.so2.layout import Layout


@pytest.mark.parametrize("is_conjugate", [True, False])
def test_twins_multiply_complex_numbers(is_conjugate):
    layout = Layout(1, 1)
    x, w, out = (torch.randn(3, dtype=torch.complex128) for _ in range(3))
    factors = kernel_twins.spread(torch.view_as_real(x).float(), layout, 1, is_conjugate=is_conjugate)
    matrices = torch.stack([w.real, w.real + w.imag, w.imag - w.real], dim=1)
    both = torch.view_as_real(out)
    kernel_twins.join(factors * matrices, layout, 1, both, is_conjugate=is_conjugate)
    torch.testing.assert_close(out, x * (w.conj() if is_conjugate else w), rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("is_conjugate", [True, False])
@pytest.mark.parametrize(
    ("lmax", "mmax", "channels", "edges"), [(2, 1, 5, 3), (6, 2, 70, 2), (3, 3, 4, 2), (2, 2, 3, 0)]
)
def test_triton_spreads_and_joins(lmax, mmax, channels, edges, is_conjugate):
    layout = Layout(lmax, mmax)
    features = random(edges, 9 + len(layout) * channels)[:, 2:]
    planes = spread(features, layout, channels, is_conjugate=is_conjugate)
    expected = kernel_twins.spread(features, layout, channels, is_conjugate=is_conjugate)
    torch.testing.assert_close(planes, expected, rtol=0, atol=0)
    found, expected = features.clone(), features.clone()
    join(planes, layout, channels, found, is_conjugate=is_conjugate)
    kernel_twins.join(planes, layout, channels, expected, is_conjugate=is_conjugate)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
