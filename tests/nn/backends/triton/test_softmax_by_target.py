from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import DEVICE, assert_twins, graph, needs_triton, random

from dens_plugin.nn.backends.triton.softmax_by_target import softmax_by_target


def degrees_of(*counts):
    target = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).tolist()
    return graph([0] * len(target), target, len(counts)).offsets


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [(2, 0, 3), (70, 1, 20), (0, 0)])  # 70: three blocks of edges
@pytest.mark.parametrize("heads", [1, 5])
def test_triton_is_the_twin(counts, heads, dtype):
    offsets = degrees_of(*counts)
    logits = 3 * random(sum(counts), heads)
    if not sum(counts):
        assert softmax_by_target(logits, offsets).shape == (0, heads)
        return
    assert_twins(softmax_by_target, kernel_twins.softmax_by_target, [logits], [offsets], dtype)


@needs_triton
def test_triton_survives_large_logits_and_keeps_nan():
    logits = torch.tensor([[1e4, 0.0], [1e4, torch.nan], [-1e4, 1.0]], device=DEVICE)
    out = softmax_by_target(logits, degrees_of(2, 1))
    assert out[:, 0].tolist() == [0.5, 0.5, 1.0]
    assert out[:, 1].isnan().tolist() == [True, True, False]
