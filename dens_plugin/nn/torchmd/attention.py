"""Attention between pairs of atoms and of an atom with itself, which also moves vectors along."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from dens_plugin.nn.pair_messages import sum_messages
from dens_plugin.nn.pairs import Edges
from dens_plugin.nn.torchmd.radial import cosine_cutoff


class Radial(NamedTuple):
    """What layers know of distances.

    Attributes:
        bases: (H + 1, K), the last of the distance 0.
        cutoff: (H + 1, 1).
    """

    bases: torch.Tensor
    cutoff: torch.Tensor

    @classmethod
    def of(cls, edges: Edges, expansion: nn.Module, cutoff: float) -> Radial:
        """Of pairs, and of an atom with itself."""
        distances = torch.cat([edges.distances, edges.distances.new_zeros(1)])
        return cls(expansion(distances), cosine_cutoff(distances, cutoff)[:, None])


class NeighbourEmbedding(nn.Module):
    """Scalars of an atom from its element and those of its neighbours.

    Args:
        channels: C.
        num_bases: K.
        elements: atomic numbers are below this.
    """

    def __init__(self, channels: int, num_bases: int, elements: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(elements, channels)
        self.distance_proj = linear(num_bases, channels)
        self.combine = linear(2 * channels, channels)

    def forward(self, numbers: torch.Tensor, scalars: torch.Tensor, edges: Edges, radial: Radial) -> torch.Tensor:
        """(N, C) of atomic numbers (N,) and scalars (N, C)."""
        weights = self.distance_proj(radial.bases[:-1]) * radial.cutoff[:-1]  # (H, C)
        of_elements = self.embedding(numbers)
        heard = torch.zeros_like(of_elements)
        for source, target in ((edges.first, edges.second), (edges.second, edges.first)):
            heard = heard.index_add(0, target, of_elements.index_select(0, source) * weights)
        return self.combine(torch.cat([scalars, heard], dim=1))


class Attention(nn.Module):
    r"""A layer, of which an atom is a neighbour of its own, without a direction.

    .. math:: y_i = \sum_j a_{ij} s^1_{ij}, \quad w_i = \sum_j s^2_{ij} v_j + s^3_{ij} \hat{r}_{ij}, \quad
       a_{ij} = \mathrm{silu}(\sum q_i k_j d^k_{ij}) f_c(r_{ij}), \quad s_{ij} = (V x_j) d^v_{ij}

    Args:
        channels: C.
        num_bases: K.
        num_heads: of attention; they divide C.
        vector_cutoff: whether the cutoff's function multiplies s rather than a, so that vectors end smoothly too.
    """

    def __init__(self, channels: int, num_bases: int, num_heads: int, *, vector_cutoff: bool) -> None:
        super().__init__()
        self.num_heads, self.vector_cutoff = num_heads, vector_cutoff
        self.layernorm = nn.LayerNorm(channels)
        self.q_proj, self.k_proj = linear(channels, channels), linear(channels, channels)
        self.v_proj, self.o_proj = linear(channels, 3 * channels), linear(channels, 3 * channels)
        self.vec_proj = linear(channels, 3 * channels, bias=False)
        self.dk_proj, self.dv_proj = linear(num_bases, channels), linear(num_bases, 3 * channels)

    def forward(
        self, scalars: torch.Tensor, vectors: torch.Tensor, edges: Edges, radial: Radial
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New scalars (N, C) and vectors (N, 3, C)."""
        channels = scalars.shape[1]
        normal = self.layernorm(scalars)
        heard, moved = self._heard(normal, vectors, edges, radial)
        along, gate, change = self.o_proj(heard).split(channels, dim=1)
        first, second, third = self.vec_proj(vectors).split(channels, dim=-1)
        scalars = torch.addcmul(scalars + change, (first * second).sum(dim=1), gate)
        return scalars, torch.addcmul(vectors + moved, third, along[:, None])

    def _heard(
        self, normal: torch.Tensor, vectors: torch.Tensor, edges: Edges, radial: Radial
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over neighbours and the atom itself: y (N, C) and w (N, 3, C)."""
        channels = normal.shape[1]
        of_keys, of_values = self._of_distances(radial)  # (H + 1, C), (H + 1, 3 C)
        queries, keys = self.q_proj(normal), self.k_proj(normal)
        values = nn.functional.linear(normal, *self._by_kind(self.v_proj))  # (N, 3 C)
        factors = torch.cat([torch.zeros_like(normal), values[:, channels:]], dim=1)
        _, moved = sum_messages(factors, vectors, of_values[:-1], edges)
        own = values * of_values[-1:]  # (N, 3 C)
        heard = self._weighed(queries * keys * of_keys[-1:], own[:, :channels], radial.cutoff[-1:])
        for source, target in ((edges.first, edges.second), (edges.second, edges.first)):
            products = queries.index_select(0, target) * keys.index_select(0, source) * of_keys[:-1]
            of_source = values[:, :channels].index_select(0, source) * of_values[:-1, :channels]
            heard = heard.index_add(0, target, self._weighed(products, of_source, radial.cutoff[:-1]))
        return heard, torch.addcmul(moved, vectors, own[:, None, channels : 2 * channels])

    def _weighed(self, products: torch.Tensor, values: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
        """Values (e, C) times the attention of their heads."""
        shape = (-1, self.num_heads, values.shape[1] // self.num_heads)
        weights = nn.functional.silu(products.view(shape).sum(dim=-1))  # (e, heads)
        if not self.vector_cutoff:
            weights = weights * cutoff
        return (values.view(shape) * weights[:, :, None]).flatten(1)

    def _of_distances(self, radial: Radial) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self._by_kind(self.dv_proj)
        both = torch.cat([self.dk_proj.weight, weight]), torch.cat([self.dk_proj.bias, bias])
        of_keys, of_values = nn.functional.silu(nn.functional.linear(radial.bases, *both)).split(
            [self.dk_proj.out_features, self.dv_proj.out_features], dim=1
        )
        return of_keys, of_values * radial.cutoff if self.vector_cutoff else of_values

    def _by_kind(self, layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of a layer whose outputs are three of every head, with all outputs of a kind together."""
        inputs = layer.weight.shape[1]
        weight = layer.weight.view(self.num_heads, 3, -1, inputs).transpose(0, 1).reshape(-1, inputs)
        return weight, layer.bias.view(self.num_heads, 3, -1).transpose(0, 1).flatten()


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier's uniform weights and no bias at first."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
