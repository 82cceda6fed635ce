"""Functions of a distance: the basis, and the networks that weight the paths of a tensor product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn


class ExpNormalBasis(nn.Module):
    r"""Exponential normal bases with a cosine cutoff, as in PhysNet (arXiv:1902.08408).

    .. math:: \tfrac{1}{2} (\cos \tfrac{\pi d}{c} + 1) \exp(-\beta (e^{-5 d / c} - \mu_k)^2)

    Args:
        count: K, number of bases.
        cutoff: c in Å.
    """

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.beta = (2 / count * (1 - start)) ** -2
        self.register_buffer("means", torch.linspace(start, 1, count), persistent=False)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Bases (E, K) of distances (E,) in Å."""
        distance = distance.unsqueeze(-1)
        envelope = 0.5 * (torch.cos(distance * (math.pi / self.cutoff)) + 1)
        envelope = torch.where(distance < self.cutoff, envelope, envelope.new_zeros(()))
        return envelope * torch.exp(-self.beta * (torch.exp(distance * (-5 / self.cutoff)) - self.means).square())


def smooth_envelope(distance: torch.Tensor, cutoff: float) -> torch.Tensor:
    r"""A polynomial that is 1 at short distances and 0 at the cutoff, with its first two derivatives.

    .. math:: 1 - 28 x^6 + 48 x^7 - 21 x^8, \qquad x = d / c

    as in DimeNet (arXiv:2003.03123).

    Args:
        distance: (E,) in Å.
        cutoff: c in Å.
    """
    x = (distance / cutoff).clamp(max=1.0)
    return 1 - x**6 * (28 - x * (48 - 21 * x))


class RadialNetwork(nn.Module):
    """A perceptron with layer norms from the bases of a distance to one number per path and channel.

    Args:
        widths: of the bases, of the hidden layers, and of the output.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        *hidden, outputs = widths
        layers: list[nn.Module] = []
        for inputs, width in itertools.pairwise(hidden):
            linear = nn.Linear(inputs, width)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LayerNorm(width), nn.SiLU()]
        self.hidden = nn.Sequential(*layers)
        self.out = nn.Linear(hidden[-1], outputs)

    def forward(self, basis: torch.Tensor) -> torch.Tensor:
        """(E, outputs) from the bases (E, K)."""
        return self.out(self.hidden(basis))

    def partial(self, basis: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Only the outputs ``rows`` (R,), as (E, R)."""
        return nn.functional.linear(self.hidden(basis), self.out.weight[rows], self.out.bias[rows])
