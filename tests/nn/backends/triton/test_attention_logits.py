from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import assert_twins, needs_triton, random

from dens_plugin.nn.backends.triton.attention_logits import attention_logits


@needs_triton
@pytest.mark.parametrize(("edges", "heads", "channels"), [(40, 3, 5), (3, 1, 64), (1, 8, 4)])
def test_triton_is_the_twin(edges, heads, channels):
    inputs = [random(edges, heads * channels + 2), *(random(channels, seed=seed) for seed in (1, 2))]
    inputs.append(random(heads, channels))
    both = [
        lambda x, weight, bias, vectors, of=of: of(x[:, 2:], (weight, bias, 1e-5), vectors, 0.2)
        for of in (attention_logits, kernel_twins.attention_logits)
    ]
    assert_twins(*both, inputs, [], torch.float32, roundings=2)


@needs_triton
def test_triton_reads_other_types():
    scalars, norm, vectors = random(9, 8), (random(4), random(4, seed=1), 1e-5), random(2, 4)
    reduced = scalars.to(torch.bfloat16)
    found = attention_logits(reduced, norm, vectors, 0.2)
    torch.testing.assert_close(found, kernel_twins.attention_logits(reduced.float(), norm, vectors, 0.2))


@needs_triton
def test_triton_without_edges():
    scalars = random(0, 8).requires_grad_()
    weight = random(4).requires_grad_()
    attention_logits(scalars, (weight, random(4), 1e-5), random(2, 4), 0.2).sum().backward()
    assert scalars.grad.shape == (0, 8)
    assert not weight.grad.any()
