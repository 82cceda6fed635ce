"""What atoms hear of their neighbours in SchNet, by filters that are functions of the distance."""

from __future__ import annotations

import math

import torch
from torch import nn

from dens_plugin.nn.pairs import Edges


class ShiftedSoftplus(nn.Module):
    """Softplus less log 2, which is 0 at 0."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Of any shape."""
        return nn.functional.softplus(values) - math.log(2.0)


class Gaussians(nn.Module):
    """Gaussians at equal steps up to the cutoff, as wide as a step.

    Args:
        count: K, at least 2.
        cutoff: Å.
    """

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("means", torch.linspace(0, cutoff, count), persistent=False)
        self.coefficient = -0.5 * ((count - 1) / cutoff) ** 2

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """(H, K) of distances (H,) in Å."""
        return torch.exp(self.coefficient * (distances[:, None] - self.means).square())


class Interaction(nn.Module):
    r"""A continuous-filter convolution and what follows it.

    .. math:: x_i + L_3 \, s(L_2 \sum_j (L_1 x_j) \, W(r_{ij}) f_c(r_{ij}))

    Args:
        channels: C.
        num_filters: F.
        num_bases: K.
    """

    def __init__(self, channels: int, num_filters: int, num_bases: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(num_bases, num_filters), ShiftedSoftplus(), nn.Linear(num_filters, num_filters)
        )
        self.lin1 = nn.Linear(channels, num_filters, bias=False)
        self.lin2 = nn.Linear(num_filters, channels)
        self.act = ShiftedSoftplus()
        self.lin = nn.Linear(channels, channels)

    def forward(self, scalars: torch.Tensor, edges: Edges, bases: torch.Tensor, envelope: torch.Tensor) -> torch.Tensor:
        """New scalars (N, C), by bases (H, K) and the cutoff's function (H, 1)."""
        filters, of_atoms = self.mlp(bases) * envelope, self.lin1(scalars)  # (H, F), (N, F)
        heard = torch.zeros_like(of_atoms, dtype=torch.result_type(of_atoms, filters))  # two types under autocast
        for source, target in ((edges.first, edges.second), (edges.second, edges.first)):
            heard = heard.index_add(0, target, of_atoms.index_select(0, source) * filters)
        return scalars + self.lin(self.act(self.lin2(heard)))
