"""One layer of EGNN: messages along edges, which move coordinates and change scalars."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from dens_plugin.nn.egnn.edges import Edges, directions
from dens_plugin.nn.egnn.force_terms import EncodedForces

_FIRST_MOVES = 1e-3  # gain of the weights that move atoms: a new network leaves them nearly where they are


class Messages(nn.Module):
    r"""What an atom hears of each neighbour (Equation 3), weighed by attention where there is any (Equation 8).

    .. math:: m_{ij} = \phi_e(h_i, h_j, |x_i - x_j|^2), \quad m_{ij} \leftarrow \sigma(\phi_a(m_{ij})) \, m_{ij}

    Args:
        channels: C of scalars and messages.
        attention: whether messages are weighed.
    """

    def __init__(self, channels: int, *, attention: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Linear(2 * channels + 1, channels)
        self.second = nn.Linear(channels, channels)
        self.attention = nn.Linear(channels, 1) if attention else None

    def forward(
        self, scalars: torch.Tensor, edges: Edges, vectors: torch.Tensor, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(E, C) messages.

        Args:
            scalars: (N, C).
            edges: of the batch.
            vectors: (E, 3) Å, at the present coordinates.
            seen: (E, C) what else is known of an edge, added before the first activation.
        """
        of_target, of_source, of_length = self.first.weight.split([self.channels, self.channels, 1], dim=1)
        at_target = nn.functional.linear(scalars, of_target, self.first.bias).index_select(0, edges.target)
        at_source = nn.functional.linear(scalars, of_source).index_select(0, edges.source)
        hidden = at_target + at_source + vectors.square().sum(dim=-1, keepdim=True) * of_length.T
        if seen is not None:
            hidden = hidden + seen
        messages = nn.functional.silu(self.second(nn.functional.silu(hidden)))
        return messages if self.attention is None else messages * torch.sigmoid(self.attention(messages))


class Moves(nn.Module):
    r"""Where messages push an atom (Equation 4), a mean over its edges.

    .. math:: \Delta x_i = \frac{1}{n_i} \sum_j (x_i - x_j) \, \phi_x(m_{ij})

    Args:
        channels: C of messages.
        normalize: whether a neighbour's distance does not matter: x_i - x_j is divided by its length.
        constant_length: as of `directions`.
        gain: of the last weights when new.
    """

    def __init__(
        self, channels: int, *, normalize: bool = True, constant_length: bool = False, gain: float = _FIRST_MOVES
    ) -> None:
        super().__init__()
        self.normalize, self.constant_length = normalize, constant_length
        self.first = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, 1, bias=False)
        nn.init.xavier_uniform_(self.second.weight, gain=gain)

    def forward(self, messages: torch.Tensor, edges: Edges, vectors: torch.Tensor) -> torch.Tensor:
        """(N, 3) from messages (E, C) and vectors (E, 3) Å."""
        if self.normalize:
            vectors = directions(vectors, constant_length=self.constant_length)
        return edges.mean(vectors * self.second(nn.functional.silu(self.first(messages))))


class State(NamedTuple):
    """What a layer leaves.

    Attributes:
        scalars: (N, C).
        displacement: (N, 3) Å from where atoms were given.
        messages: (E, C) that it sent.
        vectors: (E, 3) Å along which it sent them.
    """

    scalars: torch.Tensor
    displacement: torch.Tensor
    messages: torch.Tensor
    vectors: torch.Tensor


class Layer(nn.Module):
    r"""Messages, moves and new scalars (Equation 6), beside a shortcut.

    .. math:: h_i \leftarrow h_i + \phi_h(h_i, \sum_j m_{ij})

    Args:
        channels: C.
        attention: as of `Messages`.
        normalize: as of `Moves`.
        constant_length: as of `Moves`.
        moves: whether coordinates move; they do not in the authors' network for QM9.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention: bool = True,
        normalize: bool = True,
        constant_length: bool = False,
        moves: bool = True,
    ) -> None:
        super().__init__()
        self.messages = Messages(channels, attention=attention)
        self.moves = Moves(channels, normalize=normalize, constant_length=constant_length) if moves else None
        self.first = nn.Linear(2 * channels, channels)
        self.second = nn.Linear(channels, channels)

    def of_scalars(self) -> list[nn.Parameter]:
        """The weights that nothing but the new scalars depend on."""
        return [*self.first.parameters(), *self.second.parameters()]

    def forward(
        self, scalars: torch.Tensor, displacement: torch.Tensor, edges: Edges, forces: EncodedForces | None = None
    ) -> State:
        """From scalars (N, C) and displacements (N, 3) Å, and the forces of atoms that have some."""
        vectors = edges.moved(displacement)
        messages = self.messages(scalars, edges, vectors, None if forces is None else forces.along(edges))
        if self.moves is not None:
            displacement = displacement + self.moves(messages, edges, vectors)
            if forces is not None:
                displacement = displacement + forces.moves(scalars)
        heard = torch.cat([scalars, edges.sum(messages)], dim=-1)
        scalars = scalars + self.second(nn.functional.silu(self.first(heard)))
        return State(scalars, displacement, messages, vectors)
