from __future__ import annotations

import pytest
import torch
from kernel_samples import order
from kernel_twins import expand_radial

from dens_plugin.nn.backends.triton.packing import degrees


@pytest.mark.parametrize("lmax", range(9))
def test_sizes_tell_degree_and_order(lmax):
    for mmax in range(lmax + 1):
        assert degrees(len(order(lmax, mmax)), (lmax + 1) ** 2) == (lmax, mmax)


@pytest.mark.parametrize(("coefficients", "components"), [(29, 48), (28, 49), (0, 0)])
def test_other_sizes_are_refused(coefficients, components):
    with pytest.raises(ValueError, match="no largest degree"):
        degrees(coefficients, components)


def test_radial_rows_meet_their_coefficients():
    pairs = order(6, 2)
    own = [pair for pair in pairs if pair[1] >= 0]
    by_order = expand_radial(torch.arange(len(own))[None, :, None], 6, 2)[0, :, 0].tolist()
    assert [own[row] for row in by_order] == [(degree, abs(m)) for degree, m in pairs]
    by_degree = expand_radial(torch.arange(7)[None, :, None], 6, 2)[0, :, 0].tolist()
    assert by_degree == [degree for degree, _ in pairs]
