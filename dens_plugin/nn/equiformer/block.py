"""One layer of Equiformer: attention and a perceptron, each behind a norm and beside a shortcut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dens_plugin.nn.equiformer.activation import gate, gated_channels
from dens_plugin.nn.equiformer.coupled_edges import CoupledEdges
from dens_plugin.nn.equiformer.linear import Linear
from dens_plugin.nn.features import Features, total


class FeedForward(nn.Module):
    """Two linear maps with a gate between them, atom by atom.

    Args:
        inputs: channels of the input per degree.
        hidden: channels between the maps per degree.
        contract: the second map.
    """

    def __init__(self, inputs: Sequence[int], hidden: Sequence[int], contract: Linear) -> None:
        super().__init__()
        self.channels = list(hidden)
        self.expand = Linear(inputs, gated_channels(hidden))
        self.contract = contract

    def forward(self, features: Sequence[torch.Tensor]) -> Features:
        """[(N, 2l + 1, outputs)] from [(N, 2l + 1, inputs)], of as many degrees as are given."""
        return self.contract(gate(self.expand(features), self.channels))


class Block(nn.Module):
    """Norm, attention, shortcut; norm, perceptron, shortcut.

    Args:
        norms: two, or identities.
        attention: from features to features of the same channels.
        feed_forward: to the block's output.
        shortcut: beside the perceptron, where it changes the number of channels.
    """

    def __init__(
        self,
        norms: tuple[nn.Module, nn.Module],
        attention: nn.Module,
        feed_forward: nn.Module,
        *,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norms
        self.attention = attention
        self.feed_forward = feed_forward
        self.shortcut = shortcut or nn.Identity()

    def forward(self, features: Sequence[torch.Tensor], edges: CoupledEdges, stop: int | None = None) -> Features:
        """Features [(N, 2l + 1, outputs)] from [(N, 2l + 1, inputs)], of the degrees below ``stop``."""
        attended = total(features[:stop], self.attention(self.norm_1(features), edges, stop))
        return total(self.shortcut(attended), self.feed_forward(self.norm_2(attended)))
