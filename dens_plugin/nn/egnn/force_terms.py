"""Forces of atoms in a network whose only vectors are coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from dens_plugin.nn.egnn.edges import Edges, directions

_INVARIANTS = 4


class ForceTerms(nn.Module):
    r"""What a layer of EGNN learns of encoded forces.

    A force enters as a velocity does in Equation 7: it moves its atom, by a factor that depends on the atom alone. In
    messages stand its invariants with the edge,

    .. math:: |f_i|, \; |f_j|, \; f_i \cdot d_{ij}, \; f_j \cdot d_{ij}

    with the direction d of the edge. Both keep E(3): forces turn, and are mirrored, as directions are. There is no
    bias, so that a structure without encoded forces sees the plain network, bit for bit.

    Args:
        channels: C of scalars and messages.
        moves: whether forces move atoms.
    """

    def __init__(self, channels: int, *, moves: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # a model with DeNS starts from the weights of the one without
            self.seen = nn.Parameter(torch.empty(_INVARIANTS, channels).uniform_(-1, 1))
            self.factor = nn.Linear(channels, 1) if moves else None
            if self.factor is not None:  # nearly none at first: a large force would throw its atom away
                nn.init.xavier_uniform_(self.factor.weight, gain=1e-3)
                nn.init.zeros_(self.factor.bias)

    def along(self, edges: Edges, forces: torch.Tensor) -> torch.Tensor:
        """(E, C) what messages see of forces (N, 3)."""
        direction = directions(edges.vectors)
        norms, at_target, at_source = forces.norm(dim=-1), forces[edges.target], forces[edges.source]
        invariants = [
            norms[edges.target],
            norms[edges.source],
            (at_target * direction).sum(dim=-1),
            (at_source * direction).sum(dim=-1),
        ]
        return torch.stack(invariants, dim=-1) @ self.seen

    def moves(self, scalars: torch.Tensor, forces: torch.Tensor) -> torch.Tensor:
        """(N, 3) where forces push their atoms."""
        assert self.factor is not None
        return forces * self.factor(scalars)


class EncodedForces(NamedTuple):
    """Forces as one layer sees them.

    Attributes:
        terms: the layer's.
        forces: (N, 3), zero for atoms without.
    """

    terms: ForceTerms
    forces: torch.Tensor

    def along(self, edges: Edges) -> torch.Tensor:
        """(E, C), see `ForceTerms.along`."""
        return self.terms.along(edges, self.forces)

    def moves(self, scalars: torch.Tensor) -> torch.Tensor:
        """(N, 3), see `ForceTerms.moves`."""
        return self.terms.moves(scalars, self.forces)
