from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import needs_triton, random

from dens_plugin.nn.backends.triton.degree_sums import degree_sums


@needs_triton
@pytest.mark.parametrize("shape", [(9, 3, 2), (2, 4, 40, 30), (1, 2, 5)])
def test_triton_degree_sums(shape):
    of_components = random(*shape)
    torch.testing.assert_close(degree_sums(of_components), kernel_twins.degree_sums(of_components))
