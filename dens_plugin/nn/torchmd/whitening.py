"""A norm of vectors over channels, as pre-training via denoising has for QM9."""

from __future__ import annotations

import torch
from torch import nn

_EPS = 1e-5


class WhitenedNorm(nn.Module):
    r"""Vectors of an atom with a mean of zero and a covariance of one, in double precision inside.

    .. math:: \gamma \, (S + 10^{-5} \, \mathrm{diag}(1, 2, 3))^{-1/2} (v - \bar{v})

    with the covariance S over channels. The diagonal keeps directions apart where S vanishes; for vectors in a plane it
    makes the result depend on the orientation.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, 3, C) of the same shape."""
        centred = vectors.double()
        centred = centred - centred.mean(dim=-1, keepdim=True)
        diagonal = torch.diag(centred.new_tensor([1.0, 2.0, 3.0])) * _EPS
        covariance = centred @ centred.transpose(1, 2) / centred.shape[2] + diagonal
        values, axes = torch.linalg.eigh(covariance)
        root = (axes * (values + _EPS).rsqrt()[:, None]) @ axes.transpose(1, 2)
        return (root @ centred).to(vectors.dtype) * self.weight
