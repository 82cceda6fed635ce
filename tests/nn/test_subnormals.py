from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.subnormals import without_subnormals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_only_subnormal_numbers_become_zero(dtype):
    tiny = torch.finfo(dtype).tiny
    features = torch.tensor([0, tiny / 4, tiny / 2, 2 * tiny, 1e-20, 1, torch.inf, torch.nan], dtype=dtype)
    assert features[1] > 0
    found = without_subnormals(features)
    assert (found[:3] == 0).all()
    assert torch.equal(found[3:].nan_to_num(7.0), features[3:].nan_to_num(7.0))
    assert torch.equal(without_subnormals(-features[:6]), -found[:6])
