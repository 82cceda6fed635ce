from __future__ import annotations

import pytest
import torch
from kernel_samples import needs_triton, random

from dens_plugin.nn.backends.triton.degree_sums import degree_sums


@needs_triton
@pytest.mark.parametrize("shape", [(9, 3, 2), (2, 4, 40, 30), (1, 2, 5)])
def test_triton_degree_sums(shape):
    of_components = random(*shape)
    sizes = [2 * degree + 1 for degree in range(round(shape[-3] ** 0.5))]
    expected = torch.stack([part.sum(-3) for part in of_components.split(sizes, dim=-3)], dim=-3)
    torch.testing.assert_close(degree_sums(of_components), expected)
