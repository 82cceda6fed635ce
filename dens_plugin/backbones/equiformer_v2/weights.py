"""Parameters of fairchem's EquiformerV2 as `dens_plugin.nn.so2` takes them: views, or small products of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from fairchem.core.models.equiformer_v2.radial_function import RadialFunction
from fairchem.core.models.equiformer_v2.so2_ops import SO2_Convolution
from fairchem.core.models.equiformer_v2.transformer_block import FeedForwardNetwork, SO2EquivariantGraphAttention
from torch import nn
from torch.nn import functional

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.triton.norm_silu import Elements, norm_silu
from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.degree_linear import DegreeLinear
from dens_plugin.nn.equiformer_v2.linear import Linear
from dens_plugin.nn.equiformer_v2.radial import Radial
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges


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


class RadialWeights(NamedTuple):
    """Of a radial function.

    Attributes:
        layers: its linear layers; the first has distances alone where there are tables.
        tables: (Z, K) what an element adds to the first layer at a source, and at a target, if it does.
    """

    layers: Sequence[Linear]
    tables: Sequence[torch.Tensor] | None


class AttentionWeights(NamedTuple):
    """Of a graph attention.

    Attributes:
        radial: of the radial function.
        first: of the first convolution.
        second: of the second one.
        projection: behind the sum over edges.
    """

    radial: RadialWeights
    first: Weights
    second: Weights
    projection: DegreeLinear


class FeedForwardWeights(NamedTuple):
    """Of a feed-forward network without gates, whose layers next to the grid are folded into one.

    Attributes:
        first: from node features to the grid.
        middle: (H, H) on the points of the grid, if it has a network of its own there.
        last: from the grid to node features.
        gates: of what degree 0 becomes by its SiLU, if that is separate.
    """

    first: DegreeLinear
    middle: torch.Tensor | None
    last: DegreeLinear
    gates: Linear | None


def attention_weights(attention: SO2EquivariantGraphAttention, dtype: torch.dtype) -> AttentionWeights:
    """As the parameters are; the projection in a precision, the others in that of their features when these are known.

    Args:
        attention: of fairchem's.
        dtype: of products of nodes.
    """
    radial = radial_weights(radial_function(attention), attention, dtype)
    convolutions = (convolution_weights(layer) for layer in (attention.so2_conv_1, attention.so2_conv_2))
    projection = DegreeLinear(attention.proj.weight, attention.proj.bias).to(dtype)
    return AttentionWeights(radial, *convolutions, projection)


def feed_forward_weights(network: FeedForwardNetwork, dtype: torch.dtype) -> FeedForwardWeights:
    """Folded, in the precision of products of nodes."""
    first, last = (DegreeLinear(layer.weight, layer.bias) for layer in (network.so3_linear_1, network.so3_linear_2))
    gates, middle = gates_of(network), None
    if network.use_grid_mlp:
        before, middle, after = (network.grid_mlp[place].weight for place in (0, 2, 4))
        first, folded = first.before(before), last.after(after)
        if gates is not None:  # which are behind the grid already
            folded = folded._replace(weight=torch.cat([last.weight[:1], folded.weight[1:]]))
        last = folded
    return FeedForwardWeights(first.to(dtype), middle, last.to(dtype), gates)


def gates_of(network: FeedForwardNetwork) -> Linear | None:
    """The layer of what degree 0 becomes by its SiLU, if that is separate."""
    if not network.use_sep_s2_act:
        return None
    layer = network.scalar_mlp[0] if network.use_grid_mlp else network.gating_linear
    return Linear(layer.weight, layer.bias)


def has_gates(network: FeedForwardNetwork) -> bool:
    """Whether a network has gates instead of a grid."""
    return network.use_gate_act and not network.use_grid_mlp


def radial_function(attention: SO2EquivariantGraphAttention) -> RadialFunction:
    """An attention's."""
    return attention.rad_func if attention.use_m_share_rad else attention.so2_conv_1.rad_func


def radial_layers(function: RadialFunction) -> list[Linear]:
    """Its linear layers, between which are a layer norm and a SiLU each."""
    return [Linear(layer.weight, layer.bias) for layer in function.net if isinstance(layer, nn.Linear)]


def radial_weights(function: RadialFunction, owner: nn.Module, dtype: torch.dtype) -> RadialWeights:
    """Of a radial function, in the precision of its products.

    Args:
        function: fairchem's network of distances and elements.
        owner: the module that holds the embeddings of elements.
        dtype: of the products.
    """
    first, *others = (layer.to(dtype) for layer in radial_layers(function))
    if not owner.use_atom_edge_embedding:
        return RadialWeights([first, *others], None)
    embeddings = [table.weight.to(dtype) for table in (owner.source_embedding, owner.target_embedding)]
    weight, *parts = split_by_inputs(first.weight, owner)
    tables = [functional.linear(table, part) for table, part in zip(embeddings, parts, strict=True)]
    return RadialWeights([Linear(weight, first.bias), *others], tables)


def split_by_inputs(weight: torch.Tensor, owner: nn.Module) -> tuple[torch.Tensor, ...]:
    """Parts (..., K, D) of a first layer's weight (..., K, all D): of distances, of sources, of targets."""
    sizes = [table.weight.shape[1] for table in (owner.source_embedding, owner.target_embedding)]
    return weight.split([weight.shape[-1] - sum(sizes), *sizes], dim=-1)


def radial_of(
    function: RadialFunction,
    weights: RadialWeights,
    atomic_numbers: torch.Tensor,
    edge_distance: torch.Tensor,
    edges: RotatedEdges,
) -> Radial:
    """A radial function, all layers but the last computed.

    Args:
        function: fairchem's network of distances and elements.
        weights: its own.
        atomic_numbers: (N,).
        edge_distance: (E, K) features of the distances.
        edges: E of them.
    """
    (first, *middle, last), tables = weights
    dtype = first.weight.dtype
    hidden = first(edges.keep(("distance", dtype), lambda: edge_distance.to(dtype)))
    uses_kernels, ends = machine_for(hidden) is Machine.TRITON, None
    if tables is not None:
        elements = edges.keep("elements", lambda: atomic_numbers[torch.stack([edges.source, edges.target])])
        if uses_kernels:
            ends = edges.keep(("ends", dtype), lambda: Elements.of(elements, len(tables[0]), dtype))
        else:
            for table, numbers in zip(tables, elements, strict=True):
                hidden = hidden + functional.embedding(numbers, table)
    norms = [layer for layer in function.net if isinstance(layer, nn.LayerNorm)]
    for norm, layer in zip(norms, [*middle, None], strict=True):
        if uses_kernels:
            hidden, tables = norm_silu(hidden, (norm.weight, norm.bias, norm.eps), tables, ends), None
        else:
            hidden = functional.silu(norm(hidden.to(norm.weight.dtype))).to(dtype)
        hidden = hidden if layer is None else layer(hidden)
    return Radial(hidden, *last)
