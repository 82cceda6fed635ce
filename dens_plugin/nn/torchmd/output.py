"""From scalars and vectors of an atom to a number and a vector."""

from __future__ import annotations

import torch
from torch import nn

from dens_plugin.nn.torchmd.attention import linear


class GatedOutput(nn.Module):
    """Two gated blocks, C channels to C / 2 to one.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.output_network = nn.ModuleList([_GatedBlock(channels, channels // 2), _GatedBlock(channels // 2, 1)])

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N,) and (N, 3) of scalars (N, C) and vectors (N, 3, C)."""
        first, second = self.output_network
        scalars, vectors = first(scalars, vectors)
        scalars, vectors = second(nn.functional.silu(scalars), vectors)
        return scalars.squeeze(-1), vectors.squeeze(-1)

    def of_vectors_alone(self) -> list[nn.Parameter]:
        """What only the vector depends on."""
        return list(self.output_network[1].vec2_proj.parameters())


class _GatedBlock(nn.Module):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.vec1_proj = linear(channels, channels, bias=False)
        self.vec2_proj = linear(channels, outputs, bias=False)
        self.update_net = nn.Sequential(linear(2 * channels, channels), nn.SiLU(), linear(channels, 2 * outputs))

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.cat([scalars, _norm(self.vec1_proj(vectors))], dim=1)
        scalars, gates = self.update_net(inputs).split(self.outputs, dim=1)
        return scalars, gates[:, None] * self.vec2_proj(vectors)


def _norm(vectors: torch.Tensor) -> torch.Tensor:
    """(N, C) of vectors (N, 3, C); 0 of 0, with derivatives of 0."""
    squared = vectors.square().sum(dim=1)
    is_zero = squared == 0
    return squared.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0)
