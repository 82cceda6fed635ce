"""The kernels in their place behind eSCN's second layer, against the path without them."""

from __future__ import annotations

import pytest
import torch
from kernel_samples import DEVICE, assert_twins, needs_triton, random

from dens_plugin.nn.backends.choice import Machine
from dens_plugin.nn.escn import message_sum
from dens_plugin.nn.escn.first_layer import parts_of
from dens_plugin.nn.escn.second_layer import SecondLayer
from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges

HIDDEN, CHANNELS, INPUTS, POINTS = 6, 4, 5, 20


def inputs_of(layout, edges):
    """Of a second layer: factors, weights, hidden values."""
    parts = parts_of(layout)
    width = 2 * len(parts) * HIDDEN
    ends = [(layout.degrees_of(m) * CHANNELS, (4 if m else 2) * HIDDEN) for m in range(layout.mmax + 1)]
    hidden = [(edges, min(part.m, 1) + 1, HIDDEN) for _ in range(2) for part in parts]
    shapes = [(edges, INPUTS), (width, INPUTS), (width,), *ends, *hidden]
    return [random(*shape, seed=number) for number, shape in enumerate(shapes)]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lmax", "mmax", "targets"), [(2, 1, [0, 0, 2, 2, 2]), (3, 2, [1, 2]), (1, 0, [0]), (2, 1, [])]
)
def test_triton_message_sum(lmax, mmax, targets, dtype, monkeypatch):
    layout, count = Layout(lmax, mmax), len(targets)
    edge_index = torch.tensor([[1] * count, targets], dtype=torch.long, device=DEVICE)
    edges = RotatedEdges.build(edge_index, random(count, layout.packed_starts[-1], seed=7), layout, num_atoms=4)
    grid = message_sum.Grid(*(GridMatrix(random(POINTS, len(layout), seed=seed)) for seed in (0, 1)))

    def summed(by_kernels, tensors):
        machine = Machine.TRITON if by_kernels else Machine.PLAIN
        monkeypatch.setattr(message_sum, "machine_for", lambda *_: machine)
        return message_sum.message_sum(SecondLayer.parse(tensors, layout), grid, edges)

    assert_twins(
        lambda *tensors: summed(True, tensors),
        lambda *tensors: summed(False, [tensor.float() for tensor in tensors]),
        inputs_of(layout, count),
        [],
        dtype,
        roundings=3,  # of products with factors, of convolved and of activated features
    )
