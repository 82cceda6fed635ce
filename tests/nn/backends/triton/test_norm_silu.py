from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import DEVICE, TOLERANCES, assert_twins, needs_triton, random

from dens_plugin.nn.backends.triton.norm_silu import Elements, norm_silu

ELEMENTS = 4


def test_elements():
    elements = Elements.of(torch.tensor([[1, 0], [2, 1]]), 3, torch.float32)
    assert elements.ones.tolist() == [[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]]


@needs_triton
@pytest.mark.parametrize("has_tables", [True, False])
@pytest.mark.parametrize(("edges", "channels"), [(40, 5), (3, 64), (1, 2)])
def test_triton_is_the_twin(edges, channels, has_tables):
    numbers = torch.randint(ELEMENTS, (2, edges), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    elements = Elements.of(numbers, ELEMENTS, torch.float32) if has_tables else None
    shapes = [(edges, channels), (channels,), (channels,), *(2 * [(ELEMENTS, channels)] if has_tables else [])]
    inputs = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    both = [
        lambda x, weight, bias, *tables, of=of: of(x, (weight, bias, 1e-2), tables or None, elements)
        for of in (norm_silu, kernel_twins.norm_silu)
    ]
    assert_twins(*both, inputs, [], torch.float32, roundings=2)


@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_triton_stores_other_types(dtype):
    norm = random(8), random(8, seed=1), 1e-5
    assert_twins(lambda x: norm_silu(x, norm), lambda x: kernel_twins.norm_silu(x, norm), [random(20, 8)], [], dtype)


@needs_triton
def test_triton_without_edges():
    weight = random(4).requires_grad_()
    norm_silu(random(0, 4), (weight, random(4), 1e-5)).sum().backward()
    assert not weight.grad.any()
