"""A layer of SE(3)-Transformer: equivariant attention, a linear map of old and new features, and a nonlinearity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dens_plugin.nn.features import Features
from dens_plugin.nn.se3_transformer.convolution import Convolution, Turned, linear_weights, through_kernels
from dens_plugin.nn.se3_transformer.edges import Edges

_SMALLEST_SQUARED = 1e-24  # of a norm, below which a feature has no direction


class Attention(nn.Module):
    r"""Values of the neighbours, weighed by how well their keys fit an atom's query (Equations 10 to 13).

    .. math:: z_i = \sum_j \mathrm{softmax}_j \left( q_i \cdot k_{ij} / \sqrt{d} \right) v_{ij}

    Keys and values are messages; d is the number of components of a query over all heads.

    Args:
        inputs: channels per degree.
        channels: of values per degree; keys and queries have them in the degrees of the input.
        heads: number of heads, which share out the channels of each degree.

    Raises:
        ValueError: for channels that heads cannot share.
    """

    def __init__(self, inputs: Sequence[int], channels: Sequence[int], heads: int) -> None:
        super().__init__()
        uneven = [count for count in channels if count % heads]
        if uneven:
            raise ValueError(f"num_heads must divide the {uneven[0]} channels of values, got {heads}")
        self.heads = heads
        of_keys = list(channels[: len(inputs)])
        self.value = Convolution(inputs, channels)
        self.key = Convolution(inputs, of_keys)
        self.query = nn.ParameterList([linear_weights(*sizes) for sizes in zip(inputs, of_keys, strict=True)])
        self.scale = sum((2 * degree + 1) * count for degree, count in enumerate(of_keys)) ** -0.5

    def forward(self, features: Sequence[torch.Tensor], edges: Edges) -> Features:
        """[(N, 2l + 1, channels)] from [(N, 2l + 1, inputs)]; zeros for atoms without edges."""
        turned = through_kernels(features, edges, self.value.outputs)  # of values and keys alike
        shares = edges.softmax(self._logits(features, turned, edges) * self.scale)  # (E, heads)
        values = self.value(turned, edges)
        return [edges.sum(self._by_head(value, shares)) for _, value in sorted(values.items())]

    def _logits(self, features: Sequence[torch.Tensor], turned: Turned, edges: Edges) -> torch.Tensor:
        logits = edges.distance.new_zeros(len(edges.target), self.heads)
        for degree, key in self.key(turned, edges).items():
            query = (features[degree] @ self.query[degree]).index_select(0, edges.target)
            logits = logits + (query * key).sum(dim=1).unflatten(1, (self.heads, -1)).sum(dim=-1)
        return logits

    def _by_head(self, value: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return (value.unflatten(2, (self.heads, -1)) * shares[:, None, :, None]).flatten(2)


class NormNonlinearity(nn.Module):
    r"""A nonlinear function of the norms of features, which keep their directions.

    .. math:: h \leftarrow \mathrm{ReLU}(\mathrm{LayerNorm}(|h|)) \, h / |h|

    Args:
        channels: per degree.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)

    def forward(self, features: Sequence[torch.Tensor]) -> Features:
        """[(N, 2l + 1, C_l)] from the same; a feature without a direction stays zero."""
        out = []
        for norm, feature in zip(self.norms, features, strict=True):
            length = feature.square().sum(dim=1, keepdim=True).clamp(min=_SMALLEST_SQUARED).sqrt()  # (N, 1, C_l)
            out.append(torch.relu(norm(length)) * (feature / length))
        return out


class Layer(nn.Module):
    """Attention, a linear map of what it gives and what it was given, a nonlinearity.

    Args:
        inputs: channels per degree, of degrees from 0.
        channels: of the output per degree.
        values: of attention per degree.
        heads: number of attention heads.
    """

    def __init__(self, inputs: Sequence[int], channels: Sequence[int], values: Sequence[int], heads: int) -> None:
        super().__init__()
        self.attention = Attention(inputs, values, heads)
        beside = [*inputs, *[0] * (len(channels) - len(inputs))]
        joined = [first + second for first, second in zip(values, beside, strict=True)]
        self.project = nn.ParameterList([linear_weights(*sizes) for sizes in zip(joined, channels, strict=True)])
        self.nonlinearity = NormNonlinearity(channels)

    def forward(self, features: Sequence[torch.Tensor], edges: Edges) -> Features:
        """[(N, 2l + 1, channels)] from [(N, 2l + 1, inputs)]."""
        attended = self.attention(features, edges)
        joined = [
            torch.cat([new, features[degree]], dim=2) if degree < len(features) else new
            for degree, new in enumerate(attended)
        ]
        return self.nonlinearity([value @ weight for value, weight in zip(joined, self.project, strict=True)])
