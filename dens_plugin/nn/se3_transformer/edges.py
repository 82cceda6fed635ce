"""What a graph's edges offer to every layer, computed once: distances, and kernels between degrees by directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from e3nn import o3
from torch import nn

from dens_plugin.nn.wigner import wigner_3j

_SHORTEST_SQUARED = 1e-16  # Å², below which a length has no gradient


class Edges(NamedTuple):
    """The directed edges of a batch of structures.

    Attributes:
        source: (E,) the neighbour.
        target: (E,) the atom that a message goes to.
        distance: (E, 1) Å.
        kernels: input degree -> output degree -> (E, 2 output + 1, J, 2 input + 1), one for each of the J degrees of
            harmonics that couple the two.
        degree: (N,) how many edges end at an atom, at least 1.
    """

    source: torch.Tensor
    target: torch.Tensor
    distance: torch.Tensor
    kernels: list[list[torch.Tensor]]
    degree: torch.Tensor

    def sum(self, messages: torch.Tensor) -> torch.Tensor:
        """(N, ...) the sum over the edges of each atom of messages (E, ...), 0 for an atom without edges."""
        return messages.new_zeros(len(self.degree), *messages.shape[1:]).index_add(0, self.target, messages)

    def softmax(self, logits: torch.Tensor) -> torch.Tensor:
        """(E, heads) shares of 1 among the edges of each atom, from logits (E, heads)."""
        index = self.target[:, None].expand_as(logits)
        largest = logits.new_zeros(len(self.degree), logits.shape[1])
        largest = largest.scatter_reduce(0, index, logits.detach(), "amax", include_self=False)
        shares = (logits - largest.index_select(0, self.target)).exp()
        return shares / self.sum(shares).index_select(0, self.target)


class EdgeGeometry(nn.Module):
    r"""Vectors between atoms to distances and kernels (Equation 8 of the paper, without its radial functions).

    .. math:: W^{l k}_J(r) = \sum_m Y_{J m}(r / |r|) \, Q^{l k}_{J m}

    with "integral" normalised harmonics Y and Wigner's 3j symbols for Q, whose sign is fixed here (versions of e3nn
    differ in it).

    Args:
        lmax: the largest degree of features.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.degrees = range(lmax + 1)
        self._harmonics = list(range(2 * lmax + 1))
        blocks = [_couplings(output, inputs) for inputs in self.degrees for output in self.degrees]
        self._shapes = [block.shape[1:] for block in blocks]
        rows = [nn.functional.pad(block.flatten(1), (0, 0, 0, (2 * lmax + 1) ** 2 - len(block))) for block in blocks]
        self.register_buffer("_matrix", torch.cat(rows, dim=1).to(torch.get_default_dtype()), persistent=False)

    def forward(self, source: torch.Tensor, target: torch.Tensor, vectors: torch.Tensor, num_atoms: int) -> Edges:
        """Edges of indices (E,) and vectors (E, 3) in Å from target to source."""
        kernels = self.kernels(vectors)
        distance = vectors.square().sum(dim=-1, keepdim=True).clamp(min=_SHORTEST_SQUARED).sqrt()
        degree = vectors.new_zeros(num_atoms).index_add(0, target, vectors.new_ones(len(target)))
        return Edges(source, target, distance, kernels, degree.clamp(min=1))

    def kernels(self, vectors: torch.Tensor) -> list[list[torch.Tensor]]:
        """As of `Edges`, for vectors (E, 3)."""
        harmonics = o3.spherical_harmonics(self._harmonics, vectors, normalize=True, normalization="integral")
        parts = (harmonics @ self._matrix).split([shape.numel() for shape in self._shapes], dim=1)
        blocks = [part.reshape(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        count = len(self.degrees)
        return [blocks[count * inputs : count * (inputs + 1)] for inputs in self.degrees]


def coupling_degrees(first: int, second: int) -> range:
    """The degrees of harmonics that couple two degrees."""
    return range(abs(first - second), first + second + 1)


def widths(inputs: Sequence[int], outputs: Sequence[int]) -> list[tuple[int, int, int]]:
    """(paths, inputs, outputs) of each pair of degrees that have channels, input degrees first."""
    return [
        (len(coupling_degrees(first, second)), inputs[first], outputs[second])
        for first in range(len(inputs))
        for second in range(len(outputs))
        if inputs[first] and outputs[second]
    ]


def _couplings(output: int, inputs: int) -> torch.Tensor:
    """(harmonics, 2 output + 1, J, 2 inputs + 1) in float64, of all harmonics up to the largest that couples."""
    degrees = coupling_degrees(output, inputs)
    block = torch.zeros((output + inputs + 1) ** 2, 2 * output + 1, len(degrees), 2 * inputs + 1, dtype=torch.float64)
    for index, degree in enumerate(degrees):
        block[degree**2 : (degree + 1) ** 2, :, index] = wigner_3j(output, inputs, degree).permute(2, 0, 1)
    return block
