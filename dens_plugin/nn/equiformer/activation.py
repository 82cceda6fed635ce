"""Activations of unit second moment, and gates for the degrees above 0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from e3nn.math import normalize2mom
from torch import nn

from dens_plugin.nn.features import Features


def silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU over the root of its second moment under a normal distribution."""
    return nn.functional.silu(x) * _scale(nn.functional.silu)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """The sigmoid over the root of its second moment."""
    return torch.sigmoid(x) * _scale(torch.sigmoid)


def smooth_leaky_relu(x: torch.Tensor) -> torch.Tensor:
    """A leaky ReLU of slope 0.2 without a kink, over the root of its second moment; for attention scores."""
    return _smooth_leaky_relu(x) * _scale(_smooth_leaky_relu)


def gate(features: Sequence[torch.Tensor], channels: Sequence[int]) -> Features:
    """SiLU of the scalars, and the other degrees times the sigmoid of further scalars.

    Args:
        features: of which degree 0 has C_0 scalars and then one gate for each channel of the other degrees.
        channels: C_l of the output.
    """
    scalars, *gates = features[0].split(list(channels), dim=-1)
    gated = [x * sigmoid(g) for x, g in zip(features[1:], gates, strict=False)]
    return [silu(scalars), *gated]


def gated_channels(channels: Sequence[int]) -> list[int]:
    """Channels that `gate` needs to return ``channels``."""
    return [sum(channels), *channels[1:]]


def _smooth_leaky_relu(x: torch.Tensor) -> torch.Tensor:
    return 0.6 * x + 0.4 * x * (2 * torch.sigmoid(x) - 1)


@functools.cache
def _scale(function: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """e3nn's estimate from a million fixed numbers, which published weights were trained with."""
    return float(normalize2mom(function).cst)
