"""What a graph's edges offer to every layer, computed once: distances' bases and couplings by directions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from e3nn import o3
from torch import nn

from dens_plugin.nn.equiformer.radial import ExpNormalBasis, smooth_envelope
from dens_plugin.nn.wigner import wigner_3j


class CoupledEdges(NamedTuple):
    """The directed edges of a batch of structures.

    Attributes:
        source: (E,) the neighbour.
        target: (E,) the atom that a message goes to.
        basis: (E, K) radial bases.
        harmonics: per degree, (E, 2l + 1).
        couplings: per input degree from 1, (E, R, 2 input + 1): how harmonics turn it into all output degrees. Rows are
            ordered by output degree, component of the output, degree of the harmonics.
        envelope: (E,) what messages are multiplied by, 0 at the cutoff; None for the published network, whose messages
            end there.
    """

    source: torch.Tensor
    target: torch.Tensor
    basis: torch.Tensor
    harmonics: list[torch.Tensor]
    couplings: list[torch.Tensor]
    envelope: torch.Tensor | None = None

    def select(self, index: torch.Tensor) -> CoupledEdges:
        """Only the edges ``index``."""
        return CoupledEdges(
            self.source[index],
            self.target[index],
            self.basis.index_select(0, index),
            [harmonics.index_select(0, index) for harmonics in self.harmonics],
            [coupling.index_select(0, index) for coupling in self.couplings],
            None if self.envelope is None else self.envelope.index_select(0, index),
        )


class EdgeGeometry(nn.Module):
    r"""Vectors between atoms to radial bases, harmonics and couplings.

    .. math:: C_{(l_3 m_3 l_2) m_1} = \sqrt{2 l_3 + 1} \sum_{m_2} w^{l_1 l_2 l_3}_{m_1 m_2 m_3} Y_{l_2 m_2}(r / |r|)

    with Wigner's 3j symbols w, whose sign is fixed here (versions of e3nn differ in it), and "component" normalised
    harmonics Y.

    Args:
        lmax: L, the largest degree of harmonics, input and output; at least 1.
        basis_count: K, number of radial bases.
        cutoff: in Å.
        smooth: whether messages fade out at the cutoff.
    """

    def __init__(self, lmax: int, basis_count: int, cutoff: float, *, smooth: bool = False) -> None:
        super().__init__()
        self._cutoff, self._smooth = cutoff, smooth
        self._degrees = list(range(lmax + 1))
        self.basis = ExpNormalBasis(basis_count, cutoff)
        blocks = [_couplings(inputs, lmax) for inputs in self._degrees[1:]]
        self._shapes = [block.shape[1:] for block in blocks]
        matrix = torch.cat([block.flatten(1) for block in blocks], dim=1)  # (harmonics, entries of all couplings)
        self.register_buffer("_matrix", matrix.to(torch.get_default_dtype()), persistent=False)

    def forward(self, source: torch.Tensor, target: torch.Tensor, vectors: torch.Tensor) -> CoupledEdges:
        """CoupledEdges of indices (E,) and vectors (E, 3) in Å from target to source."""
        harmonics = o3.spherical_harmonics(self._degrees, vectors, normalize=True, normalization="component")
        blocks = (harmonics @ self._matrix).split([shape.numel() for shape in self._shapes], dim=1)
        couplings = [block.reshape(-1, *shape) for block, shape in zip(blocks, self._shapes, strict=True)]
        by_degree = list(harmonics.split([2 * degree + 1 for degree in self._degrees], dim=1))
        distance = vectors.norm(dim=-1)
        envelope = smooth_envelope(distance, self._cutoff) if self._smooth else None
        return CoupledEdges(source, target, self.basis(distance), by_degree, couplings, envelope)


def path_count(output: int, inputs: int, lmax: int) -> int:
    """P, the number of harmonics' degrees up to ``lmax`` that couple two degrees."""
    return len(_edge_degrees(output, inputs, lmax))


def _edge_degrees(output: int, inputs: int, lmax: int) -> range:
    return range(abs(output - inputs), min(output + inputs, lmax) + 1)


def _couplings(inputs: int, lmax: int) -> torch.Tensor:
    """(harmonics, R, 2 inputs + 1) in float64: couplings of an input degree by each component of harmonics alone."""
    return torch.cat([_coupling(output, inputs, lmax) for output in range(lmax + 1)], dim=1)


def _coupling(output: int, inputs: int, lmax: int) -> torch.Tensor:
    degrees = _edge_degrees(output, inputs, lmax)
    block = torch.zeros((lmax + 1) ** 2, 2 * output + 1, len(degrees), 2 * inputs + 1, dtype=torch.float64)
    for index, degree in enumerate(degrees):
        symbol = wigner_3j(inputs, degree, output) * math.sqrt(2 * output + 1)
        block[degree**2 : (degree + 1) ** 2, :, index] = symbol.permute(1, 2, 0)
    return block.flatten(1, 2)
