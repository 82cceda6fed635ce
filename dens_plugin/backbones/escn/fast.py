"""eSCN's layers, computing fairchem's numbers with fewer multiplications and passes over memory.

These functions read the parameters of fairchem's modules, so that state dict and random numbers stay fairchem's and a
run may change from one path to the other at any step. What they do otherwise:

- the first layer of a convolution acts on nodes, before the rotation (`dens_plugin.nn.escn.first_layer`);
- edges go through a layer some hundred at a time (`dens_plugin.nn.escn.message_sum`);
- linear layers next to a grid are applied to coefficients, of which there are fewer than points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from dens_plugin.backbones.forward_pass import edge_dtype
from dens_plugin.backbones.grids import grid_matrix
from dens_plugin.nn.escn.first_layer import Group, first_layer
from dens_plugin.nn.escn.message_sum import Grid, message_sum
from dens_plugin.nn.escn.second_layer import Factors, SecondLayer
from dens_plugin.nn.so2.grid_mlp import grid_mlp
from dens_plugin.nn.so2.rotated_edges import RotatedEdges

if TYPE_CHECKING:
    from fairchem.core.models.escn.escn import EdgeBlock, LayerBlock, MessageBlock, SO2Block
    from fairchem.core.models.escn.so3 import SO3_Grid


@dataclass(frozen=True)
class Geometry:
    """What all layers of a forward pass share.

    Attributes:
        edges: with their rotations, by target.
        ends: the same edges by source, and by target.
        elements: (2, E) atomic numbers of sources and targets.
        distances: (E, K) distance basis.
    """

    edges: RotatedEdges
    ends: tuple[tuple[Group, ...], tuple[Group, ...]]
    elements: torch.Tensor
    distances: torch.Tensor


def layer(block: LayerBlock, nodes: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """(N, (lmax + 1)^2, C) output of a layer for its input.

    Args:
        block: fairchem's layer.
        nodes: (N, (lmax + 1)^2, C).
        geometry: of the batch.
    """
    received = _messages(block.message_block, nodes, geometry)
    lmax = geometry.edges.layout.lmax
    grid = [matrix.flatten(0, 1) for matrix in _matrices(block.SO3_grid[lmax][lmax], nodes.device)]
    before = functional.linear(torch.cat([nodes, received], dim=2), block.fc1_sphere.weight)
    return functional.linear(grid_mlp(before, block.fc2_sphere.weight, *grid), block.fc3_sphere.weight).to(nodes.dtype)


def _messages(block: MessageBlock, nodes: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """(N, (lmax + 1)^2, C) sum of the messages to every atom."""
    layout, edges = geometry.edges.layout, geometry.edges
    convolutions = [block.so2_block_source, block.so2_block_target]
    factors = [layer for convolution in convolutions for layer in _factor_layers(convolution)]
    inputs = _edge_features(block.edge_block, geometry)
    matrices = _matrices(block.SO3_grid[layout.lmax][layout.mmax], nodes.device)
    grid = Grid(*(grid_matrix(matrix, layout) for matrix in matrices))
    dtype = edge_dtype(nodes)
    with torch.autocast(nodes.device.type, enabled=False):
        hidden = [
            part
            for convolution, groups in zip(convolutions, geometry.ends, strict=True)
            for part in first_layer(nodes.to(dtype), _first_weights(convolution), groups, len(inputs))
        ]
        weight, bias = (torch.cat([getattr(layer, name) for layer in factors]) for name in ("weight", "bias"))
        second = SecondLayer(hidden, Factors(inputs, weight, bias), _second_weights(convolutions), layout)
        return message_sum(second, grid, edges)


def _edge_features(block: EdgeBlock, geometry: Geometry) -> torch.Tensor:
    """(E, K) features of distance and elements; fairchem's `EdgeBlock` makes the distance basis for each layer anew."""
    source, target = geometry.elements
    elements = block.source_embedding(source) + block.target_embedding(target)
    return block.act(block.fc1_edge_attr(block.act(elements + block.fc1_dist(geometry.distances))))


def _factor_layers(convolution: SO2Block) -> list[torch.nn.Linear]:
    return [convolution.fc1_dist0, *(of_order.fc1_dist for of_order in convolution.so2_conv)]


def _first_weights(convolution: SO2Block) -> list[torch.Tensor]:
    pairs = [layer for of_order in convolution.so2_conv for layer in (of_order.fc1_r, of_order.fc1_i)]
    return [layer.weight for layer in (convolution.fc1_m0, *pairs)]


def _second_weights(convolutions: list[SO2Block]) -> list[torch.Tensor]:
    """For every order (n C, 2 H or 4 H), of both ends."""
    pairs = zip(*(convolution.so2_conv for convolution in convolutions), strict=True)
    of_orders = [[layer for of_order in pair for layer in (of_order.fc2_r, of_order.fc2_i)] for pair in pairs]
    of_zero = [convolution.fc2_m0 for convolution in convolutions]
    return [torch.cat([layer.weight for layer in layers], dim=1) for layers in (of_zero, *of_orders)]


def _matrices(grid: SO3_Grid, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A, L) to the points of a grid and back."""
    return grid.get_to_grid_mat(device), grid.get_from_grid_mat(device)
