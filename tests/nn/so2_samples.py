"""Small graphs and weights, the convolution in complex numbers, and a comparison with a formula."""

from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges

LAYOUT = Layout(lmax=2, mmax=1)
GRAPHS = {  # targets of the edges, of four atoms
    "equal degrees": [0, 0, 1, 1, 2, 2],
    "unequal degrees": [0, 1, 1, 1, 3],
    "no edges": [],
}
on_all_graphs = pytest.mark.parametrize("targets", GRAPHS.values(), ids=GRAPHS)


def graph(targets, layout=LAYOUT, num_atoms=4):
    edge_index = torch.stack([torch.randint(num_atoms, (len(targets),)), torch.tensor(targets, dtype=torch.long)])
    packed = torch.randn(len(targets), layout.packed_starts[-1])
    return RotatedEdges.build(edge_index, packed, layout, num_atoms=num_atoms)


def weights_of(channels, out_channels, extra=0):
    count = LAYOUT.degrees_of(0)
    zero = torch.randn(extra + count * out_channels, count * channels, requires_grad=True)
    one = torch.randn(2 * (count - 1) * out_channels, (count - 1) * channels, requires_grad=True)
    return Weights(torch.randn(len(zero), requires_grad=True), [zero, one])


def convolved(features, weights):
    """The convolution in complex numbers."""
    count, size = LAYOUT.degrees_of(0), LAYOUT.degrees_of(1)
    zero = features[:, :count].flatten(1) @ weights.orders[0].T + weights.bias
    real, imaginary = features[:, count : count + size].flatten(1), features[:, count + size :].flatten(1)
    one = torch.complex(real, imaginary) @ torch.complex(*weights.orders[1].chunk(2)).T
    return torch.cat([zero, one.real, one.imag], dim=1)


def collected(features, edges):
    """The sum of features (E, S, C), rotated back, at all four atoms."""
    back = edges.rotation.transpose(1, 2) @ features
    return back.new_zeros(4, *back.shape[1:]).index_add(0, edges.target, back)


def check(function, formula, *inputs):
    """The same values and first derivatives as the formula's."""
    found, expected = function(*inputs), formula(*inputs)
    assert torch.allclose(found, expected)
    seed = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(found, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True)
    assert all(torch.allclose(a, b) for a, b in pairs)
