"""``torch_scatter.utils``: the one helper that fairchem-core imports."""

from __future__ import annotations

import torch


def broadcast(src: torch.Tensor, other: torch.Tensor, dim: int) -> torch.Tensor:
    """Expand an index along ``dim`` to the shape of ``other``."""
    dim = other.dim() + dim if dim < 0 else dim
    for _ in range(dim if src.dim() == 1 else 0):
        src = src.unsqueeze(0)
    for _ in range(src.dim(), other.dim()):
        src = src.unsqueeze(-1)
    return src.expand_as(other)
