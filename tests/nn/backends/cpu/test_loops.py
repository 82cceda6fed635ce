"""Message and attention by loops: outputs and gradients of plain torch."""

from __future__ import annotations

import pytest
import torch
from loop_samples import LAYOUTS, graph, needs_loops, on_all_graphs, on_all_layouts, require_close

from dens_plugin.nn.equiformer_v2.attention import weighted_sum
from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.loop_inputs import LoopInputs
from dens_plugin.nn.equiformer_v2.message import messages
from dens_plugin.nn.equiformer_v2.radial import Radial
from dens_plugin.nn.so2.activation import GateActivation, GridActivation
from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.rotated_edges import RotatedEdges
from dens_plugin.nn.so2.rotation import collect, expand, rotate_back

pytestmark = needs_loops
CHANNELS = 5  # no multiple of what a processor takes at a time
TARGETS = [0, 0, 0, 1, 1, 1, 2, 2, 2]


def weights_of(layout, inputs, outputs, extra=0):
    zero = torch.randn(extra + layout.degrees_of(0) * outputs, layout.degrees_of(0) * inputs)
    others = [
        torch.randn(2 * layout.degrees_of(m) * outputs, layout.degrees_of(m) * inputs)
        for m in range(1, layout.mmax + 1)
    ]
    parts = [torch.randn(len(zero)), zero, *others]
    bias, *orders = (part.requires_grad_() for part in parts)
    return Weights(bias, orders)


def radial_of(layout, num_edges, rows):
    shapes = (num_edges, 3), (rows * 2 * CHANNELS, 3), (rows * 2 * CHANNELS,)
    return Radial(*(torch.randn(*shape, requires_grad=True) for shape in shapes))


def rows_of(layout):
    """Numbers of factors: none, one a degree, one a degree and order."""
    return [0, layout.lmax + 1, sum(layout.degrees_of(m) for m in range(layout.mmax + 1))]


def with_gradients(outputs, inputs):
    """Outputs, and the gradients of a sum that is the same each time."""
    total = sum((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in outputs)
    return [*(output.detach() for output in outputs), *torch.autograd.grad(total, inputs)]


@on_all_graphs
@on_all_layouts
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["no factors", "degrees", "degrees and orders"])
def test_messages(targets, layout, kind, in_plain_torch):
    edges, weights = graph(targets, layout), weights_of(layout, 2 * CHANNELS, 3, extra=2)
    nodes = torch.randn(4, (layout.lmax + 1) ** 2, CHANNELS, requires_grad=True)
    rows = rows_of(layout)[kind]
    radial = radial_of(layout, len(targets), rows) if rows else None
    inputs = [nodes, weights.bias, *weights.orders, *(radial or ())]

    def computed():
        return with_gradients(messages(nodes, radial, weights, edges, nodes.dtype, num_scalars=2), inputs)

    found = computed()
    in_plain_torch()
    require_close(found, computed())


@torch.no_grad()
def test_inputs_by_order_are_those_of_all_orders():
    layout = LAYOUTS[1]
    edges, nodes = graph(TARGETS, layout), torch.randn(4, 49, CHANNELS)
    for rows in rows_of(layout):
        inputs = LoopInputs(nodes, radial_of(layout, len(TARGETS), rows) if rows else None, edges)
        for piece in edges.pieces:
            expected = layout.orders_of(inputs.of(piece))
            for m, (found, of_order) in enumerate(zip(inputs.by_order(piece), expected, strict=True)):
                assert torch.equal(found[:, : of_order.shape[1]], of_order)
                if m > 0:
                    plus, minus = of_order.chunk(2, dim=1)
                    assert torch.equal(found[:, of_order.shape[1] :], plus + minus)


def grid_activation(layout, *, is_separable, longitudes):
    """Of a grid that is a product, as those of spherical harmonics are."""
    orders = [m for _, m in layout.coefficients]
    places = {m: number for number, m in enumerate(dict.fromkeys(orders))}
    matrices = []
    for _ in range(2):
        latitude, longitude = torch.randn(6, len(layout)), torch.randn(longitudes, len(places))
        matrices.append(latitude[:, None] * longitude[:, [places[m] for m in orders]])
    grids = [GridMatrix.of(matrix, orders) for matrix in matrices]
    assert all(grid.for_loops is not None for grid in grids)
    return GridActivation(*grids, is_separable)


@on_all_graphs
@on_all_layouts
@pytest.mark.parametrize("kind", ["separable", "whole", "gates"])
def test_weighted_sum(targets, layout, kind, in_plain_torch):
    edges, weights = graph(targets, layout), weights_of(layout, CHANNELS, 6)
    if kind == "gates":
        activation = GateActivation(layout)
    else:
        activation = grid_activation(layout, is_separable=kind == "separable", longitudes=7)
    width = (activation.num_gates + len(layout)) * CHANNELS
    convolved, attention = torch.randn(len(targets), width, requires_grad=True), torch.rand(len(targets), 2)
    attention.requires_grad_()
    inputs = [convolved, attention, weights.bias, *weights.orders]

    def computed():
        return with_gradients([weighted_sum(activation(convolved, len(layout)), attention, weights, edges)], inputs)

    found = computed()
    in_plain_torch()
    require_close(found, computed())


@on_all_graphs
@on_all_layouts
def test_rotations(targets, layout, in_plain_torch):
    edges = graph(targets, layout)
    nodes = torch.randn(4, (layout.lmax + 1) ** 2, CHANNELS)
    features = torch.randn(len(targets), len(layout), CHANNELS, requires_grad=True)

    def computed():
        out = torch.zeros_like(nodes)
        for piece in edges.pieces:
            collect(features.detach()[piece.edges], edges, piece, out)
        expanded = [expand(nodes, edges, piece) for piece in edges.pieces]
        return [out, *expanded, *with_gradients([rotate_back(features, edges)], [features])]

    found = computed()
    in_plain_torch()
    require_close(found, computed())


def test_activation_of_large_values_next_to_small_ones():
    """Of which a loop takes the reciprocals of two at a time."""
    coefficients = [0, 1, -1]
    to_grid = torch.randn(1, 4, 3).expand(2, 4, 3).clone()
    to_grid[:, :, 0] = torch.tensor([1.0, 0.02, -1.0, 0.7])  # neighbours far apart
    grid = GridMatrix.of(to_grid, coefficients)
    assert grid.for_loops is not None
    features = torch.zeros(50, 3, CHANNELS, dtype=torch.float32)
    features[:, 0] = torch.linspace(-300, 300, 50)[:, None]
    gates = torch.zeros(50, CHANNELS)
    found = GridActivation(grid, grid, True)(torch.cat([gates, features.flatten(1)], dim=1), 3)
    unseparated = GridActivation(grid, grid, False)(features.flatten(1), 3)
    expected = torch.einsum("gs,egc->esc", grid.dense, torch.nn.functional.silu(grid.dense @ features))
    require_close([found[:, 1:], unseparated], [expected[:, 1:], expected])


def test_order_in_memory_does_not_matter(in_plain_torch):
    layout = LAYOUTS[1]
    edges, weights = graph(TARGETS, layout), weights_of(layout, CHANNELS, 6)
    packed = torch.cat([edges.packed, edges.packed], dim=1)[:, : layout.packed_starts[-1]]
    index = torch.stack([edges.source, edges.target], dim=1).int().t()
    strided = RotatedEdges.build(index, packed, layout, num_atoms=4)
    activated = torch.randn(len(layout), CHANNELS, len(TARGETS)).permute(2, 0, 1).requires_grad_()
    attention = torch.rand(2, len(TARGETS)).t().requires_grad_()
    nodes = torch.randn(4, CHANNELS, 49).transpose(1, 2).requires_grad_()
    of_nodes = weights_of(layout, 2 * CHANNELS, 3)
    features = torch.randn(len(TARGETS), CHANNELS, len(layout)).transpose(1, 2)

    def computed(edges):
        outputs = [weighted_sum(activated, attention, weights, edges), rotate_back(features, edges)]
        outputs += messages(nodes, None, of_nodes, edges, nodes.dtype)
        return with_gradients(outputs, [activated, attention, nodes])

    found = computed(strided)
    in_plain_torch()
    require_close(found, computed(edges))


def test_threads_do_not_change_a_bit():
    layout = LAYOUTS[1]
    edges, weights = graph(TARGETS, layout), weights_of(layout, CHANNELS, 6)
    activation = grid_activation(layout, is_separable=True, longitudes=6)
    convolved = torch.randn(len(TARGETS), 30 * CHANNELS, requires_grad=True)
    attention = torch.rand(len(TARGETS), 2, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = weighted_sum(activation(convolved, len(layout)), attention, weights, edges)
        results.append(with_gradients([out], [convolved, attention]))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nan_stays_where_it_belongs():
    layout = LAYOUTS[1]
    edges, weights = graph(TARGETS, layout), weights_of(layout, CHANNELS, 6)
    activation = grid_activation(layout, is_separable=True, longitudes=6)
    convolved = torch.randn(len(TARGETS), 30 * CHANNELS)
    convolved[0, -1] = float("nan")
    with torch.no_grad():
        out = weighted_sum(activation(convolved, len(layout)), torch.rand(len(TARGETS), 2), weights, edges)
    assert out[0].isnan().any()
    assert out[1:].isfinite().all()
