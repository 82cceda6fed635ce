from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import needs_triton, random

from dens_plugin.nn.backends.triton.degree_sums import degree_sums


@needs_triton
@pytest.mark.parametrize(
    ("shape", "lowest"), [((9, 3, 2), 0), ((2, 4, 40, 30), 0), ((1, 2, 5), 0), ((8, 2, 3), 1), ((2, 12, 2, 3), 2)]
)
def test_triton_degree_sums(shape, lowest):
    of_components = random(*shape)
    torch.testing.assert_close(degree_sums(of_components, lowest), kernel_twins.degree_sums(of_components, lowest))
