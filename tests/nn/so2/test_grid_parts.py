from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.so2.grid_parts import grid_parts


@pytest.mark.parametrize(("num_rows", "max_bytes", "sizes"), [(5, 480, [2, 2, 1]), (3, 1, [1, 1, 1]), (0, 480, [])])
def test_parts_are_all_rows_and_fit(num_rows, max_bytes, sizes):
    """A row of 10 points with 6 channels takes 240 bytes; one is the least."""
    features = torch.randn(num_rows, 9, 6)
    parts = [features[part] for part in grid_parts(features, 10, max_bytes)]
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts) if parts else features, features)
