"""Functions of a distance: Gaussians, and the envelopes that end them at the cutoff."""

from __future__ import annotations

import math

import torch
from torch import nn


class PolynomialEnvelope(nn.Module):
    r"""1 at distance 0, and 0 at the cutoff with first and second derivatives (DimeNet, arXiv:2003.03123).

    .. math:: 1 - \tfrac{(p + 1)(p + 2)}{2} x^p + p (p + 2) x^{p + 1} - \tfrac{p (p + 1)}{2} x^{p + 2}

    Args:
        exponent: p.
    """

    def __init__(self, exponent: int = 5) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, share: torch.Tensor) -> torch.Tensor:
        """Values (E,) at distances (E,) over the cutoff."""
        p = float(self.exponent)
        first, second, third = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
        value = 1 + share**p * (first + share * (second + share * third))
        return torch.where(share < 1, value, value.new_zeros(()))


class CosineEnvelope(nn.Module):
    r"""Half a wave, :math:`(\cos \pi x + 1) / 2`, as in PaiNN's paper: its first derivative ends at the cutoff."""

    def forward(self, share: torch.Tensor) -> torch.Tensor:
        """Values (E,) at distances (E,) over the cutoff."""
        value = 0.5 * torch.cos(share * math.pi) + 0.5
        return torch.where(share < 1, value, value.new_zeros(()))


class Gaussians(nn.Module):
    """Gaussians at equal steps from 0 to the cutoff, as wide as a step.

    Args:
        count: K, at least 2.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.linspace(0, 1, count), persistent=False)
        self.coefficient = -0.5 * (count - 1) ** 2

    def forward(self, share: torch.Tensor) -> torch.Tensor:
        """Bases (E, K) of distances (E,) over the cutoff."""
        return torch.exp(self.coefficient * (share[:, None] - self.means).square())


class RadialBases(nn.Module):
    """Gaussians under an envelope, and beside them what a filter's bias is multiplied by.

    Args:
        count: K, of Gaussians.
        cutoff: Å.
        envelope: of the distance over the cutoff.
        smooth: whether the envelope also ends the bias, so that filters are zero at the cutoff; without, they jump.
    """

    def __init__(self, count: int, cutoff: float, envelope: nn.Module, *, smooth: bool) -> None:
        super().__init__()
        self.cutoff, self.smooth = cutoff, smooth
        self.gaussians, self.envelope = Gaussians(count), envelope

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """(H, K + 1) of distances (H,) in Å."""
        share = distances * (1 / self.cutoff)
        envelope = self.envelope(share)[:, None]
        last = envelope if self.smooth else torch.ones_like(envelope)
        return torch.cat([self.gaussians(share) * envelope, last], dim=1)
