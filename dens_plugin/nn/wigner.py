"""Wigner's 3j symbols with a sign that does not depend on the version of e3nn."""

from __future__ import annotations

import torch
from e3nn import o3


def wigner_3j(first: int, second: int, third: int) -> torch.Tensor:
    """(2 first + 1, 2 second + 1, 2 third + 1) in float64, with a positive first component."""
    symbol = o3.wigner_3j(first, second, third, dtype=torch.float64)
    leading = symbol.flatten()[(symbol.flatten().abs() > 1e-6).nonzero()[0, 0]]
    return symbol * leading.sign()
