from __future__ import annotations

import pytest
import torch
from so2_samples import LAYOUT, check, convolved, graph, on_all_graphs, weights_of

from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.fused import fused_messages
from dens_plugin.nn.equiformer_v2.message import messages
from dens_plugin.nn.equiformer_v2.radial import Radial

pytestmark = pytest.mark.usefixtures("exact")
ROWS = {
    "no factors": None,
    "degrees": [degree for degree, _ in LAYOUT.coefficients],
    "degrees and orders": [0, 1, 2, 3, 4, 3, 4],
}


def in_pieces(nodes, radial, weights, edges):
    return torch.cat(messages(nodes, radial, weights, edges, nodes.dtype, num_scalars=2), dim=1)


def by_kernels(nodes, radial, weights, edges):
    return torch.cat(fused_messages(nodes, radial, weights, edges, num_scalars=2), dim=1)


@pytest.mark.parametrize("function", [in_pieces, by_kernels])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@on_all_graphs
def test_formula(targets, rows, function):
    edges, weights, radial = graph(targets), weights_of(4, 3, extra=2), ()
    nodes = torch.randn(4, 9, 2, requires_grad=True)
    if rows is not None:
        width = (max(rows) + 1) * 4
        radial = [torch.randn(*shape, requires_grad=True) for shape in [(len(targets), 3), (width, 3), (width,)]]

    def formula(nodes, bias, zero, one, *radial):
        features = edges.rotation @ torch.cat([nodes[edges.source], nodes[edges.target]], dim=2)
        if radial:
            factors = radial[0] @ radial[1].T + radial[2]
            features = features * factors.unflatten(1, (-1, 4))[:, rows]
        return convolved(features, Weights(bias, [zero, one]))

    def found(nodes, bias, zero, one, *radial):
        return function(nodes, Radial(*radial) if radial else None, Weights(bias, [zero, one]), edges)

    check(found, formula, nodes, weights.bias, *weights.orders, *radial)


def test_precision_is_of_the_features():
    edges, nodes = graph([0, 1]), torch.randn(4, 9, 2, requires_grad=True)
    _, found = messages(nodes, None, weights_of(4, 3), edges, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(found.sum(), nodes)
    assert grad.dtype == nodes.dtype
