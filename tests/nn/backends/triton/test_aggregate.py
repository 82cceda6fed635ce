from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import assert_twins, graph, needs_triton, order, random, rotation

from dens_plugin.nn.backends.triton.aggregate import aggregate

DOUBLE = torch.float64


def pointers(source, target, atoms):
    edges = graph(source, target, atoms)
    return edges.offsets, edges.target


def test_twin_is_the_formula_and_its_gradient():
    lmax, mmax, heads = 2, 1, 2
    edges = graph([0, 1, 0], [0, 0, 2], 4)
    count = len(order(lmax, mmax))
    values = random(3, count, 6, dtype=DOUBLE).requires_grad_()
    weights = random(3, heads, dtype=DOUBLE).requires_grad_()
    turn, scale = rotation(3, lmax, mmax, DOUBLE), random(count, dtype=DOUBLE)
    by_head = values.reshape(3, count, heads, 3)
    messages = torch.einsum("esl,s,eh,eshv->elhv", turn, scale, weights, by_head).flatten(2)
    expected = torch.stack([messages[0] + messages[1], 0 * messages[0], messages[2], 0 * messages[0]])
    found = kernel_twins.aggregate(values, weights, turn, scale, edges.offsets, edges.target)
    torch.testing.assert_close(found, expected)


def test_without_weights_they_are_one():
    values, turn, scale, edges = random(2, 7, 6), rotation(2, 2, 1), random(7), graph([1, 0], [0, 1], 2)
    offsets = edges.offsets, edges.target
    ones = torch.ones(2, 1, device=values.device)
    expected = kernel_twins.aggregate(values, ones, turn, scale, *offsets)
    torch.testing.assert_close(kernel_twins.aggregate(values, None, turn, scale, *offsets), expected)


def test_wrong_shapes_are_refused():
    edges = graph([1, 0], [0, 1], 2)
    offsets = edges.offsets, edges.target
    values, turn, scale = random(2, 7, 6), rotation(2, 2, 1), random(7)
    with pytest.raises(ValueError, match="heads"):
        aggregate(values, random(2, 4), turn, scale, *offsets)
    with pytest.raises(ValueError, match="weights"):
        aggregate(values, random(3, 3), turn, scale, *offsets)
    with pytest.raises(ValueError, match="scale"):
        aggregate(values, random(2, 3), turn, scale[:3], *offsets)
    with pytest.raises(ValueError, match="rotation"):
        aggregate(values, random(2, 3), rotation(3, 2, 1), scale, *offsets)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lmax", "mmax", "heads", "channels", "source", "target", "atoms"),
    [
        (2, 1, 2, 6, [1, 0, 0], [0, 0, 2], 4),  # 3 channels a head; atoms 1 and 3 without edges
        (3, 3, 1, 4, [0, 1], [0, 1], 2),
        (1, 0, 4, 4, [0, 0], [1, 1], 2),
        (2, 1, 2, 4, [], [], 2),  # no edges
    ],
)
def test_triton_is_the_twin(lmax, mmax, heads, channels, source, target, atoms, dtype):
    count = len(order(lmax, mmax))
    others = [rotation(len(source), lmax, mmax), random(count), *pointers(source, target, atoms)]
    inputs = [random(len(source), count, channels), random(len(source), heads)]
    assert_twins(aggregate, kernel_twins.aggregate, inputs, others, dtype)
    assert_twins(aggregate, kernel_twins.aggregate, inputs[:1], [None, *others], dtype)


@needs_triton
def test_triton_at_the_size_of_the_paper():
    others = [rotation(1, 6, 2), random(29), *pointers([0], [0], 1)]
    assert_twins(aggregate, kernel_twins.aggregate, [random(1, 29, 128), random(1, 8)], others, torch.float32)


@needs_triton
def test_triton_keeps_nan_at_its_target():
    values = random(2, 4, 2)
    values[1, 3, 1] = torch.nan
    offsets = pointers([1, 2], [0, 2], 3)
    out = aggregate(values, random(2, 1), rotation(2, 1, 1), random(4), *offsets)
    assert out[2, 1:, 1].isnan().all()
    assert not out[:2].isnan().any()
