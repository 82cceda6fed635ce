"""Layer normalisation of equivariant features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dens_plugin.nn.features import Features


class LayerNorm(nn.Module):
    r"""Divides each degree by the root mean square of its components, after the scalars' mean was subtracted.

    .. math::

        y^{(l)}_c = \gamma_c \, x^{(l)}_c \Big/ \sqrt{\tfrac{1}{C_l (2l+1)} \sum_{c m} (x^{(l)}_{cm})^2 + \epsilon}

    Args:
        channels: C_l per degree.
        eps: added to the mean square.
    """

    def __init__(self, channels: Sequence[int], eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = list(channels)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(sum(channels)))
        self.bias = nn.Parameter(torch.zeros(channels[0]))

    def forward(self, features: Sequence[torch.Tensor]) -> Features:
        """Normalise [(N, 2l + 1, C_l)]."""
        scalars = features[0] - features[0].mean(dim=-1, keepdim=True)
        weights = self.weight.split(self.channels)
        out = [self._scaled(x, weight) for x, weight in zip([scalars, *features[1:]], weights, strict=False)]
        return [out[0] + self.bias, *out[1:]]

    def _scaled(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        mean_square = x.square().mean(dim=(1, 2), keepdim=True)  # (N, 1, 1)
        return x * ((mean_square + self.eps).rsqrt() * weight)
