"""Force encoding, Equation 5 of arXiv:2403.09549."""

from __future__ import annotations

import math

import torch
from torch import nn

from dens_plugin.nn.so2.degree_copies import copies_of
from dens_plugin.nn.spherical_harmonics import spherical_harmonics


class ForceEncoding(nn.Module):
    r"""Forces as an addition to the initial node features.

    .. math:: x_f^{(l)} = W^{(l)} \, |f| \, Y^{(l)}(f / |f|)

    with "component" normalised spherical harmonics divided by sqrt(3), so that degree 1 is the force itself. There is
    no bias: a zero force encodes to exactly zero, and a clean structure sees the plain model.

    Args:
        lmax: the largest degree.
        channels: C, channels of the node features.
        weight_init: ``uniform`` or ``normal``, as for the linear layers of the backbone.
        within: where uniform weights are drawn, on both sides of zero.
    """

    def __init__(self, lmax: int, channels: int, weight_init: str = "uniform", *, within: float = 1.0) -> None:
        super().__init__()
        self.lmax = lmax
        self.weight = nn.Parameter(torch.empty(lmax + 1, channels, 1))
        with torch.random.fork_rng(devices=[]):  # a model with DeNS starts from the weights of the one without
            nn.init.normal_(self.weight) if weight_init == "normal" else nn.init.uniform_(self.weight, -within, within)

    def forward(self, forces: torch.Tensor) -> torch.Tensor:
        """Encode forces (N, 3) in eV/Å as (N, L, C)."""
        norm = forces.norm(dim=-1, keepdim=True) / math.sqrt(3)  # (N, 1)
        harmonics = norm * spherical_harmonics(forces, self.lmax)  # (N, L)
        return harmonics[:, :, None] * copies_of(self.weight)[:, :, 0]


class VectorForceEncoding(ForceEncoding):
    """Forces as an addition to vector features (N, 3, C), of degree 1 alone: one weight per channel, uniform within 1.

    Such features start at zero, so that a force of 1 eV/Å is heard from the first step.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.empty(channels))
        with torch.random.fork_rng(devices=[]):  # a model with DeNS starts from the weights of the one without
            nn.init.uniform_(self.weight, -1, 1)

    def forward(self, forces: torch.Tensor) -> torch.Tensor:
        """(N, 3, C) of forces (N, 3) in eV/Å."""
        return forces[:, :, None] * self.weight
