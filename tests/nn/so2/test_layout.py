from __future__ import annotations

import pytest
import torch
from fairchem.core.models.equiformer_v2.so3 import CoefficientMappingModule

from dens_plugin.nn.so2.layout import Layout


@pytest.mark.parametrize(("lmax", "mmax"), [(6, 2), (6, 3), (2, 0), (3, 3)])
def test_is_fairchems(lmax, mmax):
    layout, host = Layout(lmax, mmax), CoefficientMappingModule([lmax], [mmax])
    order = host.to_m.argmax(1)
    assert torch.equal(layout.constants_for(torch.zeros(())).positions_by_degree, order)
    assert [degree for degree, _ in layout.coefficients] == host.l_harmonic[order].tolist()
    assert [abs(m) for _, m in layout.coefficients] == host.m_harmonic[order].tolist()
    full = CoefficientMappingModule([lmax], [lmax])
    full.coefficient_idx(lmax, mmax)  # which the next line reads
    rescale = full.get_rotate_inv_rescale(lmax, mmax)[0].amax(0)
    assert torch.allclose(layout.constants_for(torch.zeros(())).scale, rescale[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_are_made_once(dtype):
    layout, features = Layout(3, 1), torch.zeros(1, dtype=dtype)
    constants = layout.constants_for(features)
    assert Layout(3, 1).constants_for(torch.ones(2, dtype=dtype)) is constants
    assert torch.equal(constants.positions_by_degree, layout.constants_for(torch.zeros(())).positions_by_degree)
    by_degree = [layout.coefficients[number] for number in constants.by_degree.tolist()]
    assert by_degree == sorted(layout.coefficients)
    assert constants.scale.dtype == dtype
    kept = torch.tensor([max(2 * degree + 1, 3) / 3 for degree, _ in layout.coefficients], dtype=torch.float64)
    assert torch.equal(constants.scale, kept.sqrt().to(dtype))


@pytest.mark.parametrize(("lmax", "mmax", "size"), [(6, 2, 29), (4, 2, 19), (2, 0, 3), (3, 3, 16)])
def test_orders_are_blocks(lmax, mmax, size):
    layout = Layout(lmax, mmax)
    assert len(layout) == size
    for m in range(mmax + 1):
        start, count = layout.start_of(m), layout.degrees_of(m)
        degrees = list(range(m, lmax + 1))
        assert layout.coefficients[start : start + count] == tuple((degree, m) for degree in degrees)
        if m > 0:
            assert layout.coefficients[start + count : start + 2 * count] == tuple((degree, -m) for degree in degrees)
