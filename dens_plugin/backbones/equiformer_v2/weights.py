"""Parameters of fairchem's EquiformerV2 as `dens_plugin.nn.so2` takes them: views, or small products of them."""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.radial_function import RadialFunction
from fairchem.core.models.equiformer_v2.so2_ops import SO2_Convolution
from fairchem.core.models.equiformer_v2.so3 import SO3_LinearV2
from fairchem.core.models.equiformer_v2.transformer_block import SO2EquivariantGraphAttention
from torch import nn
from torch.nn import functional

from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.degree_linear import DegreeLinear
from dens_plugin.nn.equiformer_v2.radial import Radial
from dens_plugin.nn.so2.layout import Layout


def convolution_weights(convolution: SO2_Convolution) -> Weights:
    """Of all orders."""
    orders = [convolution.fc_m0.weight, *(order.fc.weight for order in convolution.so2_m_conv)]
    return Weights(convolution.fc_m0.bias, orders)


def vector_weights(attention: SO2EquivariantGraphAttention, layout: Layout) -> Weights:
    """Outputs of degree 1 of the second convolution behind the projection to one channel, for each head apart.

    Args:
        attention: with one output channel: a vector head.
        layout: of an edge's features.

    Returns:
        As `vector_sum` wants them.
    """
    weights = convolution_weights(attention.so2_conv_2)
    projection = attention.proj.weight[1].view(attention.num_heads, -1)  # (H, V)
    bias = weights.bias.view(layout.lmax + 1, *projection.shape)[1]
    of_zero = weights.orders[0].view(layout.lmax + 1, *projection.shape, -1)[1]
    orders = [torch.einsum("hv,hvi->hi", projection, of_zero)]
    if layout.mmax > 0:
        of_one = weights.orders[1].view(2, layout.degrees_of(1), *projection.shape, -1)[:, 0]
        orders.append(torch.einsum("hv,phvi->phi", projection, of_one).flatten(0, 1))
    return Weights((projection * bias).sum(1), orders)


def degree_linear(linear: SO3_LinearV2) -> DegreeLinear:
    """The same layer."""
    return DegreeLinear(linear.weight, linear.bias)


def radial_of(
    function: RadialFunction,
    owner: nn.Module,
    atomic_numbers: torch.Tensor,
    edge_distance: torch.Tensor,
    edge_index: torch.Tensor,
) -> Radial:
    """All layers of a radial function but the last.

    Args:
        function: fairchem's network of distances and elements.
        owner: the module that holds the embeddings of elements.
        atomic_numbers: (N,).
        edge_distance: (E, K) features of the distances.
        edge_index: (2, E).
    """
    first, *middle, last = function.net
    if owner.use_atom_edge_embedding:
        hidden = _first_layer(first, owner, atomic_numbers[edge_index], edge_distance)
    else:
        hidden = first(edge_distance)
    for layer in middle:
        hidden = layer(hidden)
    return Radial(hidden, last.weight, last.bias)


def _first_layer(
    linear: nn.Linear, owner: nn.Module, elements: torch.Tensor, edge_distance: torch.Tensor
) -> torch.Tensor:
    """(E, K') of distances and embedded elements (2, E), of which each looks up its product with the weight."""
    tables = [owner.source_embedding.weight, owner.target_embedding.weight]
    of_distance, *of_elements = linear.weight.split(
        [edge_distance.shape[1], *(table.shape[1] for table in tables)], dim=1
    )
    hidden = functional.linear(edge_distance, of_distance, linear.bias)
    for table, part, numbers in zip(tables, of_elements, elements, strict=True):
        hidden = hidden + functional.embedding(numbers, functional.linear(table, part))
    return hidden
