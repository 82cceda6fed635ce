"""Equivariant graph attention, and the graph convolution that is left without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from dens_plugin.nn.equiformer.activation import gate, gated_channels, smooth_leaky_relu
from dens_plugin.nn.equiformer.coupled_edges import CoupledEdges
from dens_plugin.nn.equiformer.depthwise import DepthwisePaths, depthwise_linear
from dens_plugin.nn.equiformer.linear import Draw, Linear, normal
from dens_plugin.nn.equiformer.radial import RadialNetwork
from dens_plugin.nn.features import Features, select, total

_NO_EDGES = 1e-8  # beside a sum of exponentials that may all fade out
_LARGEST_EXPONENT = 60.0  # of float32, with room


class MessageSizes(NamedTuple):
    """Sizes that all message-passing modules of a network share.

    Attributes:
        channels: C_l of a message per degree.
        heads: number of attention heads.
        head_channels: channels of one head's value per degree.
        radial: widths of the radial bases and of the radial networks' hidden layers.
        average_degree: edges per atom, by whose root sums without attention are divided.
    """

    channels: Sequence[int]
    heads: int
    head_channels: Sequence[int]
    radial: Sequence[int]
    average_degree: float

    @property
    def values(self) -> list[int]:
        """Channels of all heads' values per degree."""
        return [self.heads * channels for channels in self.head_channels]


class PathWeights(nn.Module):
    """The second depthwise product of a message, with weights that do not depend on the distance.

    Args:
        channels: C_l of the input per degree.
        outputs: channels of the output per degree.
        first: the first output degree that is wanted.
    """

    def __init__(self, channels: Sequence[int], outputs: Sequence[int], *, first: int) -> None:
        super().__init__()
        self._paths = DepthwisePaths(channels)
        self._first = first
        self.weight = nn.Parameter(torch.empty(sum(self._paths.widths)))
        self.linear = Linear(self._paths.widths, outputs, bias=first == 0)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, draw: Draw = normal) -> None:
        """Draw the weights of the paths anew."""
        draw(self.weight, 1)

    def forward(self, message: Sequence[torch.Tensor], edges: CoupledEdges, stop: int) -> Features:
        """[(E, 2l + 1, outputs)] of the wanted degrees below ``stop`` from [(E, 2l + 1, C_l)]."""
        weights = self.weight.split(self._paths.widths)
        matrices = [weight.unsqueeze(1) * m for weight, m in zip(weights, self.linear.matrices(), strict=True)]
        wanted = matrices[self._first : stop]
        out = depthwise_linear(message, edges, matrices=wanted, paths=self._paths, first=self._first)
        if self.linear.bias is not None:
            out[0] = out[0] + self.linear.bias
        return out


class GraphConvolution(nn.Module):
    """Nonlinear messages, summed over the edges of an atom: Equiformer without attention (Table 5, index 3 to 6).

    Args:
        inputs: channels of the input per degree.
        outputs: channels of the output per degree; 0 for degrees below the first that is wanted.
        sizes: of the messages.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], sizes: MessageSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self._first = next(degree for degree, count in enumerate(outputs) if count > 0)
        self._stop = len(outputs)
        self._paths = DepthwisePaths(sizes.channels)
        self.merge_source = Linear(inputs, sizes.channels)
        self.merge_target = Linear(inputs, sizes.channels, bias=False)
        self.radial = RadialNetwork([*sizes.radial, sum(self._paths.widths)])
        self.linear = Linear(self._paths.widths, gated_channels(sizes.channels))
        self.value = PathWeights(sizes.channels, sizes.values, first=self._first)
        self.project = Linear(sizes.values, outputs)

    def forward(self, features: Sequence[torch.Tensor], edges: CoupledEdges, stop: int | None = None) -> Features:
        """Features [(N, 2l + 1, outputs)] from [(N, 2l + 1, inputs)], of the wanted degrees below ``stop``.

        Atoms without edges get the bias.
        """
        merged = total(
            select(self.merge_source(features), edges.source), select(self.merge_target(features), edges.target)
        )
        weighted = self._weighted_values(merged, edges, count=len(features[0]), stop=stop or self._stop)
        received = [x.new_zeros(len(features[0]), *x.shape[1:]).index_add(0, edges.target, x) for x in weighted]
        return self.project(received, self._first)

    def _weighted_values(self, merged: Features, edges: CoupledEdges, *, count: int, stop: int) -> Features:
        scale = 1 / math.sqrt(self.sizes.average_degree)
        value = self._gated_value(self._mixed(merged, edges, self.linear.matrices()), edges, stop)
        if edges.envelope is not None:
            value = [x * edges.envelope[:, None, None] for x in value]
        return [x * scale for x in value]

    def _mixed(self, merged: Features, edges: CoupledEdges, matrices: Sequence[torch.Tensor]) -> Features:
        return depthwise_linear(merged, edges, matrices=matrices, paths=self._paths, weights=self.radial(edges.basis))

    def _gated_value(self, mixed: Features, edges: CoupledEdges, stop: int) -> Features:
        message = gate([mixed[0] + self.linear.bias, *mixed[1:]], self.sizes.channels)
        return self.value(message, edges, stop)


class GraphAttention(GraphConvolution):
    """Nonlinear messages, weighted by attention with perceptron scores (Equiformer's Section 4.2).

    Args:
        inputs: channels of the input per degree.
        outputs: channels of the output per degree.
        sizes: of the messages.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], sizes: MessageSizes) -> None:
        super().__init__(inputs, outputs, sizes)
        scores = sizes.values[0]
        self.score = Linear(self._paths.widths[:1], [scores])
        self.score_dot = nn.Parameter(torch.empty(sizes.heads, scores // sizes.heads))
        nn.init.xavier_uniform_(self.score_dot)

    def _weighted_values(self, merged: Features, edges: CoupledEdges, *, count: int, stop: int) -> Features:
        own, scores = self.linear.matrices(), self.score.matrices()[0]
        mixed = self._mixed(merged, edges, [torch.cat([own[0], scores], dim=1), *own[1:]])
        scalars, score = mixed[0].split([own[0].shape[1], scores.shape[1]], dim=-1)
        value = self._gated_value([scalars, *mixed[1:]], edges, stop)
        weight = self._attention(score.squeeze(1) + self.score.bias, edges, count)  # (E, heads)
        return [_by_head(x, weight) for x in value]

    def _attention(self, score: torch.Tensor, edges: CoupledEdges, count: int) -> torch.Tensor:
        logits = (smooth_leaky_relu(score.unflatten(1, self.score_dot.shape)) * self.score_dot).sum(dim=-1)
        return _softmax(logits, edges.target, count, edges.envelope)


def _by_head(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values (E, 2l + 1, heads * C) times the attention (E, heads) of their head."""
    return (value.unflatten(2, (weight.shape[1], -1)) * weight[:, None, :, None]).flatten(2)


def _softmax(
    logits: torch.Tensor, target: torch.Tensor, count: int, envelope: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Of logits (E, heads) over the edges of each target; largest ones are subtracted first.

    With an envelope w (E,) edges leave both the sum and the values smoothly, the last edge of an atom too:

    .. math:: w_i \frac{w_i e^{s_i}}{\sum_j w_j e^{s_j} + \epsilon}
    """
    index = target.unsqueeze(1).expand_as(logits)
    largest = logits.new_zeros(count, logits.shape[1]).scatter_reduce(
        0, index, logits.detach(), "amax", include_self=False
    )
    exponentials = (logits - largest.index_select(0, target)).exp()
    if envelope is not None:
        exponentials = exponentials * envelope.unsqueeze(1)
    sums = exponentials.new_zeros(largest.shape).index_add(0, target, exponentials)
    if envelope is None:
        return exponentials / sums.index_select(0, target)
    # Scaled as the exponentials are, so that what was subtracted does not matter and needs no derivative.
    sums = sums + _NO_EDGES * (-largest).clamp(max=_LARGEST_EXPONENT).exp()
    return envelope.unsqueeze(1) * exponentials / sums.index_select(0, target)
