"""The first features of an atom: its element, its edges, and, where it was corrupted, its forces."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import nn

from dens_plugin.nn.equiformer.coupled_edges import CoupledEdges
from dens_plugin.nn.equiformer.depthwise import DepthwisePaths
from dens_plugin.nn.equiformer.linear import Linear, normal
from dens_plugin.nn.equiformer.radial import RadialNetwork
from dens_plugin.nn.features import Features, from_scalars
from dens_plugin.nn.force_encoding import ForceEncoding


class AtomEmbedding(nn.Module):
    """A vector of scalars for each element, and one for all of them.

    Args:
        elements: number of elements, the largest atomic number plus one.
        channels: C_l of the output.
    """

    def __init__(self, elements: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.weight = nn.Parameter(torch.randn(elements, channels[0]))
        self.bias = nn.Parameter(torch.zeros(channels[0]))

    def forward(self, atomic_numbers: torch.Tensor) -> Features:
        """[(N, 2l + 1, C_l)] of elements (N,)."""
        return from_scalars(self.weight.index_select(0, atomic_numbers) + self.bias, self.channels)


class EdgeDegreeEmbedding(nn.Module):
    """What an atom knows of its neighbours at first: the sum over edges of weighted harmonics.

    The published network runs its whole depthwise product on constant scalars, the same for all atoms; only the paths
    from scalars contribute, and only they are computed. All parameters are there, so that weights load.

    Args:
        channels: C_l of the output.
        radial: widths of the bases and of the radial network's hidden layers.
        average_degree: edges per atom, by whose root sums are divided.
    """

    def __init__(self, channels: Sequence[int], radial: Sequence[int], average_degree: float) -> None:
        super().__init__()
        self._paths = DepthwisePaths(channels)
        self._scale = average_degree**-0.5
        self.expand = Linear([1], [channels[0]])
        self.radial = RadialNetwork([*radial, sum(self._paths.widths)])
        self.linear = Linear(self._paths.widths, channels)
        rows = torch.arange(sum(self._paths.widths)).split(self._paths.widths)
        scalars = torch.cat([row[: channels[0]] for row in rows])
        self.register_buffer("_rows", scalars, persistent=False)

    def forward(self, edges: CoupledEdges, count: int) -> Features:
        """[(count, 2l + 1, C_l)]."""
        constant = self.expand.weight + self.expand.bias  # (C_0,)
        weights = self.radial.partial(edges.basis, self._rows).split(len(constant), dim=-1)
        harmonics = edges.harmonics
        if edges.envelope is not None:
            harmonics = [degree * edges.envelope.unsqueeze(1) for degree in harmonics]
        out = []
        for degree, (weight, matrix) in enumerate(zip(weights, self.linear.matrices(), strict=True)):
            mixed = (weight * constant) @ matrix[: len(constant)]  # (E, C_l)
            if degree == 0:
                mixed = mixed + self.linear.bias
            message = harmonics[degree].unsqueeze(2) * mixed.unsqueeze(1)
            zeros = message.new_zeros(count, *message.shape[1:])
            out.append(zeros.index_add(0, edges.target, message) * self._scale)
        return out


class DegreeForceEncoding(ForceEncoding):
    """The force encoding of Equation 5 for features whose number of channels depends on the degree.

    Args:
        channels: C_l per degree.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(len(channels) - 1, 1)
        self.channels = list(channels)
        self.weight = nn.Parameter(torch.empty(sum(channels)))
        with torch.random.fork_rng(devices=[]):  # a model with DeNS starts from the weights of the one without
            normal(self.weight, 1)

    def forward(self, forces: torch.Tensor) -> Features:  # type: ignore[override]
        """Encode forces (N, 3) in eV/Å as [(N, 2l + 1, C_l)]."""
        norm = forces.norm(dim=-1, keepdim=True) / math.sqrt(3)  # (N, 1)
        harmonics = norm * o3.spherical_harmonics(
            list(range(self.lmax + 1)), forces, normalize=True, normalization="component"
        )  # (N, L)
        parts = harmonics.split([2 * degree + 1 for degree in range(self.lmax + 1)], dim=1)
        weights = self.weight.split(self.channels)
        return [part.unsqueeze(2) * weight for part, weight in zip(parts, weights, strict=True)]
