from __future__ import annotations

import pytest
import torch
from so2_samples import GRAPHS, LAYOUT, check, collected, convolved, graph, on_all_graphs, weights_of
from torch.nn.functional import silu

from dens_plugin.nn.equiformer_v2.attention import softmax_by_target, vector_sum, weighted_sum
from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.fused import fused_weighted_sum
from dens_plugin.nn.so2.activation import GridActivation
from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.layout import Layout

pytestmark = pytest.mark.usefixtures("exact")
SIZE = len(LAYOUT)


def sample(targets, is_separable=True):
    activation = GridActivation(GridMatrix(torch.randn(10, SIZE)), GridMatrix(torch.randn(10, SIZE)), is_separable)
    inputs = torch.randn(len(targets), (activation.num_gates + SIZE) * 3, requires_grad=True)
    return activation, inputs, torch.rand(len(targets), 2, requires_grad=True)


@pytest.mark.parametrize("function", [weighted_sum, fused_weighted_sum])
@pytest.mark.parametrize("is_separable", [True, False])
@on_all_graphs
def test_weighted_sum(targets, is_separable, function):
    edges, weights = graph(targets), weights_of(3, 4)
    activation, inputs, attention = sample(targets, is_separable)

    def formula(inputs, attention, bias, *orders):
        gates, features = inputs.split([activation.num_gates * 3, SIZE * 3], dim=1)
        grid = torch.einsum("gs,esc->egc", activation.to_grid.dense, features.unflatten(1, (SIZE, 3)))
        activated = torch.einsum("gs,egc->esc", activation.from_grid.dense, silu(grid))
        if is_separable:
            activated = torch.cat([silu(gates)[:, None], activated[:, 1:]], dim=1)
        values = convolved(activated, Weights(bias, orders)).unflatten(1, (SIZE, 4))
        return collected(
            values
            * attention.repeat_interleave(2, dim=1)[:, None]
            * LAYOUT.constants_for(torch.zeros(())).scale[:, None],
            edges,
        )

    def found(inputs, attention, bias, *orders):
        return function(activation(inputs, SIZE), attention, Weights(bias, orders), edges)

    check(found, formula, inputs, attention, weights.bias, *weights.orders)


@on_all_graphs
def test_vector_sum_is_degree_one(targets):
    """Of the whole sum with a channel for each head."""
    edges, weights = graph(targets), weights_of(3, 2)
    activation, inputs, attention = sample(targets)
    zero, one = weights.orders
    of_degree = Weights(weights.bias[2:4], [zero[2:4], one.unflatten(0, (2, 2, 2))[:, 0].flatten(0, 1)])
    check(
        lambda i, a: vector_sum(activation(i, SIZE), a, of_degree, edges),
        lambda i, a: weighted_sum(activation(i, SIZE), a, weights, edges)[:, 1:4].sum(2),
        inputs,
        attention,
    )


def test_vector_sum_of_order_zero():
    layout = Layout(lmax=2, mmax=0)
    edges, weights = graph([0, 1, 1], layout), Weights(torch.randn(2), [torch.randn(2, 9)])
    activation = GridActivation(GridMatrix(torch.randn(10, 3)), GridMatrix(torch.randn(10, 3)), False)
    inputs, attention = torch.randn(3, 9), torch.rand(3, 2)
    values = activation(inputs, 3).flatten(1) @ weights.orders[0].T + weights.bias
    messages = (values * attention).sum(1) * layout.constants_for(torch.zeros(())).scale[1]
    expected = torch.zeros(4, 3).index_add(0, edges.target, messages[:, None] * edges.rotation[:, 1, 1:4])
    assert torch.allclose(vector_sum(activation(inputs, 3), attention, weights, edges), expected)


@on_all_graphs
def test_softmax_by_target(targets):
    edges, logits = graph(targets), 50 * torch.randn(len(targets), 2)
    found = softmax_by_target(logits, edges)
    for atom in set(targets):
        of_atom = edges.target == atom
        assert torch.allclose(found[of_atom], logits[of_atom].softmax(0))


def test_nothing_is_kept_without_gradients():
    edges, weights = graph(GRAPHS["equal degrees"]), weights_of(3, 4)
    activation, inputs, attention = sample(GRAPHS["equal degrees"])
    expected = weighted_sum(activation(inputs, SIZE), attention, weights, edges)
    with torch.no_grad():
        found = weighted_sum(activation(inputs, SIZE), attention, weights, edges)
    assert not found.requires_grad
    assert torch.equal(found, expected)
