"""The edges of a batch, and what a layer sees of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

_SMALLEST = 1e-8  # Å, added to lengths by which is divided, as in the authors' code
_SHORTEST_SQUARED = 1e-16  # Å², below which a length has no gradient


class Edges(NamedTuple):
    """The directed edges of a batch of structures.

    Attributes:
        source: (E,) the neighbour.
        target: (E,) the atom that a message goes to.
        vectors: (E, 3) Å from source to target, where atoms were given.
        degree: (N,) how many edges end at an atom, at least 1: sums are divided by it.
    """

    source: torch.Tensor
    target: torch.Tensor
    vectors: torch.Tensor
    degree: torch.Tensor

    @classmethod
    def of(cls, source: torch.Tensor, target: torch.Tensor, vectors: torch.Tensor, num_atoms: int) -> Edges:
        """Edges of indices (E,) and vectors (E, 3), counted."""
        degree = vectors.new_zeros(num_atoms).index_add(0, target, vectors.new_ones(len(target)))
        return cls(source, target, vectors, degree.clamp(min=1))

    def moved(self, displacement: torch.Tensor) -> torch.Tensor:
        """Vectors (E, 3) once atoms have moved by ``displacement`` (N, 3)."""
        return self.vectors + displacement.index_select(0, self.target) - displacement.index_select(0, self.source)

    def mean(self, messages: torch.Tensor) -> torch.Tensor:
        """(N, k) the mean over the edges of each atom of messages (E, k), 0 for an atom without edges."""
        return self.sum(messages) / self.degree[:, None]

    def sum(self, messages: torch.Tensor) -> torch.Tensor:
        """(N, k) the sum over the edges of each atom of messages (E, k)."""
        return messages.new_zeros(len(self.degree), messages.shape[1]).index_add(0, self.target, messages)


def directions(vectors: torch.Tensor, *, constant_length: bool = False) -> torch.Tensor:
    """Vectors (E, 3) over their lengths.

    Args:
        vectors: in Å.
        constant_length: whether lengths are constants to a gradient, as in the authors' code. Forces as gradients of
            the energy are then off by 1e-4 to 1e-2.
    """
    squared = vectors.square().sum(dim=-1, keepdim=True)
    length = squared.clamp(min=_SHORTEST_SQUARED).sqrt()
    return vectors / ((length.detach() if constant_length else length) + _SMALLEST)
