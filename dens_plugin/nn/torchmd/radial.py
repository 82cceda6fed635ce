"""Functions of a distance; their parameters are trained or kept."""

from __future__ import annotations

import math

import torch
from torch import nn


def cosine_cutoff(distances: torch.Tensor, cutoff: float) -> torch.Tensor:
    r"""Half a wave, :math:`(\cos \pi d / c + 1) / 2` up to c, of distances of any shape in Å."""
    value = 0.5 * torch.cos(distances * (math.pi / cutoff)) + 0.5
    return torch.where(distances < cutoff, value, value.new_zeros(()))


class ExpNormal(nn.Module):
    r"""Exponential normal bases under the cutoff.

    .. math:: f_c(d) \exp(-\beta_k (e^{-5 d / c} - \mu_k)^2)

    Args:
        count: K.
        cutoff: c in Å.
        trainable: whether means and widths are trained.
    """

    def __init__(self, count: int, cutoff: float, *, trainable: bool) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.means = nn.Parameter(torch.linspace(start, 1, count), requires_grad=trainable)
        self.betas = nn.Parameter(torch.full((count,), (2 / count * (1 - start)) ** -2), requires_grad=trainable)

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """(H, K) of distances (H,) in Å."""
        share = torch.exp(distances * (-5 / self.cutoff))[:, None]
        return cosine_cutoff(distances, self.cutoff)[:, None] * torch.exp(-self.betas * (share - self.means).square())


class Gaussians(nn.Module):
    """Gaussians at equal steps up to the cutoff, as wide as a step.

    Args:
        count: K.
        cutoff: Å.
        trainable: whether means and the width are trained.
    """

    def __init__(self, count: int, cutoff: float, *, trainable: bool) -> None:
        super().__init__()
        step = cutoff / (count - 1)
        self.offset = nn.Parameter(torch.linspace(0, cutoff, count), requires_grad=trainable)
        self.coeff = nn.Parameter(torch.tensor(-0.5 / step**2), requires_grad=trainable)

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """(H, K) of distances (H,) in Å."""
        return torch.exp(self.coeff * (distances[:, None] - self.offset).square())
