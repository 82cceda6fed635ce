"""Functions of a distance that weigh the kernels between degrees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

_HIDDEN = 32
# The authors' networks read five numbers, four of which are always zero; their first weights are drawn for five.
_DRAWN_FOR = 5


class RadialFunctions(nn.Module):
    """Perceptrons with layer norms, one for each pair of degrees, computed together.

    Args:
        widths: (paths, inputs, outputs) of each.
    """

    def __init__(self, widths: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.widths = list(widths)
        count = len(widths)
        self.first = nn.Parameter(_uniform(count, 1, _HIDDEN, bound=math.sqrt(6 / _DRAWN_FOR)))
        self.first_bias = nn.Parameter(_uniform(count, 1, _HIDDEN, bound=_DRAWN_FOR**-0.5))
        self.second = nn.Parameter(_uniform(count, _HIDDEN, _HIDDEN, bound=math.sqrt(6 / _HIDDEN)))
        self.second_bias = nn.Parameter(_uniform(count, 1, _HIDDEN, bound=_HIDDEN**-0.5))
        self.norm_weight = nn.Parameter(torch.ones(2, count, 1, _HIDDEN))
        self.norm_bias = nn.Parameter(torch.zeros(2, count, 1, _HIDDEN))
        self.last = nn.ModuleList(nn.Linear(_HIDDEN, math.prod(width)) for width in widths)
        for linear in self.last:
            nn.init.uniform_(linear.weight, -math.sqrt(6 / _HIDDEN), math.sqrt(6 / _HIDDEN))

    def forward(self, distance: torch.Tensor) -> list[torch.Tensor]:
        """[(E, paths * inputs, outputs)] of distances (E, 1) in Å."""
        hidden = self._normed(0, distance[None] * self.first + self.first_bias)  # (pairs, E, hidden)
        hidden = self._normed(1, hidden @ self.second + self.second_bias)
        return [
            linear(part).view(-1, paths * inputs, outputs)
            for linear, part, (paths, inputs, outputs) in zip(self.last, hidden, self.widths, strict=True)
        ]

    def _normed(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        normed = nn.functional.layer_norm(hidden, (_HIDDEN,))
        return torch.relu(normed * self.norm_weight[index] + self.norm_bias[index])


def _uniform(*shape: int, bound: float) -> torch.Tensor:
    return torch.empty(shape).uniform_(-bound, bound)
