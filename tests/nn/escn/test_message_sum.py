"""eSCN's convolution of two layers against its formula, in double precision."""

from __future__ import annotations

import pytest
import torch
from so2_samples import LAYOUT, check, collected, on_all_graphs

from dens_plugin.nn.escn import first_layer as first_layer_module
from dens_plugin.nn.escn.first_layer import Degrees, Part, first_layer, group_edges, parts_of
from dens_plugin.nn.escn.message_sum import Grid, fused_message_sum, message_sum
from dens_plugin.nn.escn.second_layer import Factors, SecondLayer
from dens_plugin.nn.so2 import rotated_edges
from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.rotated_edges import RotatedEdges
from dens_plugin.testing import default_dtype

CHANNELS, HIDDEN = 2, 3


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Double precision, and pieces of a few edges, so that there are several."""
    for module in (first_layer_module, rotated_edges):
        monkeypatch.setattr(module, "_CPU_EDGES", 3)
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        yield


def graph(targets, num_atoms=4):
    edge_index = torch.stack([torch.randint(num_atoms, (len(targets),)), torch.tensor(targets, dtype=torch.long)])
    packed = torch.randn(len(targets), LAYOUT.packed_starts[-1])
    return RotatedEdges.build(edge_index, packed, LAYOUT, num_atoms=num_atoms)


def random_weights(shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def first_weights():
    """Of one end: order 0, real and imaginary part of order 1."""
    return random_weights((HIDDEN, LAYOUT.degrees_of(part.m) * CHANNELS) for part in parts_of(LAYOUT))


def rotated_first(rotated, weights):
    """The first layer behind the rotation: real values of order 0, (E, 2, H) of W z and of i V z for order 1."""
    count, size = LAYOUT.degrees_of(0), LAYOUT.degrees_of(1)
    real, imaginary = rotated[:, count : count + size].flatten(1), rotated[:, count + size :].flatten(1)
    zero = rotated[:, :count].flatten(1) @ weights[0].T
    products = torch.complex(real, imaginary) @ weights[1].T.to(torch.complex128)
    rest = 1j * torch.complex(real, imaginary) @ weights[2].T.to(torch.complex128)
    return zero[:, None], *(torch.stack([part.real, part.imag], dim=1) for part in (products, rest))


def test_parts():
    assert parts_of(LAYOUT) == [Part(0, False), Part(1, False), Part(1, True)]


@pytest.mark.parametrize("end", [0, 1])
@on_all_graphs
def test_first_layer_commutes_with_the_rotation(targets, end):
    edges, weights = graph(targets), first_weights()
    nodes = torch.randn(4, 9, CHANNELS, requires_grad=True)

    def formula(nodes, *weights):
        rotated = edges.rotation @ nodes[(edges.source, edges.target)[end]]
        return torch.cat([part.flatten(1) for part in rotated_first(rotated, weights)], dim=1)

    def found(nodes, *weights):
        parts = first_layer(nodes, weights, group_edges(edges)[end], len(targets))
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    check(found, formula, nodes, *weights)


@on_all_graphs
def test_groups_by_degrees_that_are_known(targets, monkeypatch):
    edges = graph(targets)
    degrees = Degrees.of(torch.stack([edges.source, edges.target]), 4)
    assert degrees.of_targets == sorted((targets.count(atom) for atom in range(4)), reverse=True)
    expected = group_edges(edges)
    monkeypatch.setattr(torch.Tensor, "tolist", None)  # nobody is asked
    for found, of_end in zip(group_edges(edges, degrees), expected, strict=True):
        assert len(found) == len(of_end)
        for group, other in zip(found, of_end, strict=True):
            assert torch.equal(group.atoms, other.atoms)
            assert torch.equal(group.edges, other.edges)
            assert all(torch.equal(a, b) for a, b in zip(group.rows, other.rows, strict=True))


@pytest.mark.usefixtures("twins_of_kernels")
@pytest.mark.parametrize("function", [message_sum, fused_message_sum])
@on_all_graphs
def test_message_sum(targets, function):
    edges, size = graph(targets), len(LAYOUT)
    hidden = random_weights((len(targets), min(part.m, 1) + 1, HIDDEN) for _ in range(2) for part in parts_of(LAYOUT))
    factors = Factors(*random_weights([(len(targets), 4), (6 * HIDDEN, 4), (6 * HIDDEN,)]))
    weights = random_weights([(3 * CHANNELS, 2 * HIDDEN), (2 * CHANNELS, 4 * HIDDEN)])
    grid = Grid(GridMatrix(torch.randn(10, size)), GridMatrix(torch.randn(10, size)))

    def formula(*tensors):
        (inputs, weight, bias), second, hidden = tensors[:3], tensors[3:5], tensors[5:]
        values = torch.nn.functional.silu(inputs @ weight.T + bias).view(-1, 6, 1, HIDDEN)
        scaled = [part * values[:, number] for number, part in enumerate(hidden)]
        zero = torch.cat([scaled[0], scaled[3]], dim=2) @ second[0].T
        one = torch.cat([scaled[number] for number in (1, 2, 4, 5)], dim=2) @ second[1].T
        features = torch.cat([zero.flatten(1), one.flatten(1)], dim=1).unflatten(1, (size, CHANNELS))
        messages = torch.einsum("gs,esc->egc", grid.to_grid.dense, features)
        messages = torch.einsum("gs,egc->esc", grid.from_grid.dense, torch.nn.functional.silu(messages))
        return collected(messages, edges)

    def found(*tensors):
        return function(SecondLayer.parse(tensors, LAYOUT), grid, edges)

    check(found, formula, *factors, *weights, *hidden)


def test_inference_gives_the_same():
    """Without gradients, where the convolved features of a piece are not kept."""
    edges = graph([0, 0, 1, 1, 2, 2])
    hidden = [torch.randn(6, min(part.m, 1) + 1, HIDDEN) for _ in range(2) for part in parts_of(LAYOUT)]
    weights = random_weights([(3 * CHANNELS, 2 * HIDDEN), (2 * CHANNELS, 4 * HIDDEN)])
    factors = Factors(*random_weights([(6, 4), (6 * HIDDEN, 4), (6 * HIDDEN,)]))
    grid = Grid(*[GridMatrix(torch.randn(10, len(LAYOUT)))] * 2)
    layer = SecondLayer(hidden, factors, weights, LAYOUT)
    kept = message_sum(layer, grid, edges)
    with torch.no_grad():
        assert torch.equal(message_sum(layer, grid, edges), kept)
