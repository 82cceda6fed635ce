from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import DEVICE, assert_twins, needs_triton, random

from dens_plugin.nn.backends.triton.drop_path import drop_path


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [[0, 0, 1, 2, 2], []])
def test_triton_is_the_twin(batch, dtype):
    others = torch.tensor([0.1, 0.6, 0.9], device=DEVICE), torch.tensor(batch, dtype=torch.long, device=DEVICE), 0.7
    assert_twins(drop_path, kernel_twins.drop_path, [random(len(batch), 9, 130)], others, dtype)
