"""Equivariant features as one tensor per degree."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Features = list[torch.Tensor]  # [(N, 2l + 1, C_l) for l in 0 .. lmax]


def total(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> Features:
    """The sum of two features of the same shapes."""
    return [a + b for a, b in zip(first, second, strict=True)]


def select(features: Sequence[torch.Tensor], index: torch.Tensor) -> Features:
    """The features of the atoms ``index`` (E,)."""
    return [feature.index_select(0, index) for feature in features]


def from_scalars(scalars: torch.Tensor, channels: Sequence[int]) -> Features:
    """Scalars (N, C_0) with zeros for the degrees above."""
    zeros = [scalars.new_zeros(len(scalars), 2 * degree + 1, count) for degree, count in enumerate(channels)]
    return [scalars.unsqueeze(1), *zeros[1:]]
