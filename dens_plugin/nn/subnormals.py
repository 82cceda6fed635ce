"""Numbers too small for a processor to multiply at full speed."""

from __future__ import annotations

import torch
from torch.nn import functional


def without_subnormals(features: torch.Tensor) -> torch.Tensor:
    """``features`` with 0 for what is no larger than the smallest normal number, 1.2e-38 in float32.

    A processor takes a hundred cycles for an operation with such a number. The tails of a basis of Gaussians hold some
    five of them for every edge, which more than doubled the time of a radial function's first layer.
    """
    return functional.hardshrink(features, torch.finfo(features.dtype).tiny)
