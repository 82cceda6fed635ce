"""Weights of all blocks in the form in which a GPU multiplies with them, made once a step for all blocks together.

Blocks are alike, so that their parameters stack: what a block would do in a dozen small operations, and as many more in
the backward pass, takes one for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from fairchem.core.models.equiformer_v2.so2_ops import SO2_Convolution
from fairchem.core.models.equiformer_v2.transformer_block import FeedForwardNetwork, SO2EquivariantGraphAttention
from torch import nn

from dens_plugin.backbones.equiformer_v2.weights import (
    AttentionWeights,
    FeedForwardWeights,
    RadialWeights,
    gates_of,
    has_gates,
    radial_function,
    radial_layers,
    split_by_inputs,
)
from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.degree_linear import DegreeLinear
from dens_plugin.nn.equiformer_v2.linear import Linear
from dens_plugin.nn.equiformer_v2.whole_convolution import matrices_of
from dens_plugin.nn.so2.degree_copies import copies_of


def weights_of_blocks(blocks: Sequence[nn.Module], dtype: torch.dtype) -> dict[nn.Module, NamedTuple]:
    """By module.

    Args:
        blocks: of fairchem's `TransBlockV2`.
        dtype: of their products.
    """
    attentions, networks = ([getattr(block, name) for block in blocks] for name in ("ga", "ffn"))
    of_attentions = _of_attentions(attentions, dtype)
    out: dict[nn.Module, NamedTuple] = dict(zip(attentions, of_attentions, strict=True))
    if not has_gates(networks[0]):
        out |= zip(networks, _of_networks(networks, dtype), strict=True)
    return out


def _of_attentions(attentions: Sequence[SO2EquivariantGraphAttention], dtype: torch.dtype) -> list[AttentionWeights]:
    """Of some attentions that are alike."""
    convolutions = [_convolutions([getattr(a, f"so2_conv_{n}") for a in attentions], dtype) for n in (1, 2)]
    copies = copies_of(torch.stack([a.proj.weight for a in attentions]).to(dtype)).unbind()
    biases = _cast([a.proj.bias for a in attentions], dtype)
    projections = [DegreeLinear(copy, bias, is_copied=True) for copy, bias in zip(copies, biases, strict=True)]
    return [
        AttentionWeights(*of_one)
        for of_one in zip(_radial_functions(attentions, dtype), *convolutions, projections, strict=True)
    ]


def _of_networks(networks: Sequence[FeedForwardNetwork], dtype: torch.dtype) -> list[FeedForwardWeights]:
    """Of some networks that are alike, with the layers next to the grid folded into one."""
    first, last = (torch.stack([getattr(net, f"so3_linear_{n}").weight for net in networks]) for n in (1, 2))
    bias, last_bias = ([getattr(net, f"so3_linear_{n}").bias for net in networks] for n in (1, 2))
    last_bias = _cast(last_bias, dtype)
    middle: Sequence[torch.Tensor | None] = [None] * len(networks)
    if networks[0].use_grid_mlp:
        before, middle, after = ([net.grid_mlp[place].weight for net in networks] for place in (0, 2, 4))
        on_grid = torch.stack(before)
        first = on_grid[:, None] @ first
        bias = (on_grid @ torch.stack(bias)[:, :, None])[:, :, 0].to(dtype).unbind()
        folded = (last.flatten(1, 2) @ torch.stack(after)).view_as(last)
        last = torch.cat([last[:, :1], folded[:, 1:]], dim=1) if networks[0].use_sep_s2_act else folded
    else:
        bias = _cast(bias, dtype)
    gates = [gates_of(net) for net in networks]
    if networks[0].use_sep_s2_act:
        gates = _cast_layers(gates, dtype)
    if networks[0].use_grid_mlp:
        middle = _cast(middle, dtype)
    copies = (copies_of(linear.to(dtype)).unbind() for linear in (first, last))
    parts = zip(gates, middle, *copies, bias, last_bias, strict=True)
    return [
        FeedForwardWeights(
            DegreeLinear(of_first, of_bias, is_copied=True),
            of_middle,
            DegreeLinear(of_last, of_last_bias, is_copied=True),
            of_gates,
        )
        for of_gates, of_middle, of_first, of_last, of_bias, of_last_bias in parts
    ]


def _convolutions(convolutions: Sequence[SO2_Convolution], dtype: torch.dtype) -> list[Weights]:
    zeros = _cast([convolution.fc_m0.weight for convolution in convolutions], dtype)
    biases = _cast([convolution.fc_m0.bias for convolution in convolutions], dtype)
    orders = [
        matrices_of(torch.stack([convolution.so2_m_conv[n].fc.weight for convolution in convolutions]).to(dtype))
        for n in range(len(convolutions[0].so2_m_conv))
    ]
    matrices = zip(*(of_order.unbind() for of_order in orders), strict=True) if orders else [()] * len(convolutions)
    return [Weights(bias, [zero], tuple(of_one)) for bias, zero, of_one in zip(biases, zeros, matrices, strict=True)]


def _radial_functions(
    attentions: Sequence[SO2EquivariantGraphAttention], dtype: torch.dtype
) -> Iterator[RadialWeights]:
    places = zip(*(radial_layers(radial_function(attention)) for attention in attentions), strict=True)
    first, *others = places
    owner, tables = attentions[0], [None] * len(attentions)
    if owner.use_atom_edge_embedding:
        weights = torch.stack([layer.weight for layer in first]).to(dtype)
        weight, *parts = split_by_inputs(weights, owner)
        ends = ([getattr(a, f"{end}_embedding").weight for a in attentions] for end in ("source", "target"))
        products = [torch.stack(tables).to(dtype) @ part.mT for tables, part in zip(ends, parts, strict=True)]
        tables = list(zip(*(product.unbind() for product in products), strict=True))
        biases = _cast([layer.bias for layer in first], dtype)
        of_first = [Linear(*layer) for layer in zip(weight.unbind(), biases, strict=True)]
    else:
        of_first = _cast_layers(first, dtype)
    layers = zip(of_first, *(_cast_layers(place, dtype) for place in others), strict=True)
    return map(RadialWeights, layers, tables)


def _cast_layers(layers: Sequence[Linear], dtype: torch.dtype) -> list[Linear]:
    weights, biases = (_cast(list(parts), dtype) for parts in zip(*layers, strict=True))
    return [Linear(*layer) for layer in zip(weights, biases, strict=True)]


def _cast(parameters: Sequence[torch.Tensor], dtype: torch.dtype) -> Sequence[torch.Tensor]:
    """In another precision, all at once."""
    if parameters[0].dtype == dtype:
        return parameters
    return torch.stack(list(parameters)).to(dtype).unbind()
