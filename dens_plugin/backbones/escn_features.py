"""Node and edge features of eSCN for one resolution: the host's numbers from fewer copies.

The host sorts the coefficients of each edge by order m with a dense permutation matrix, four times a layer, selects
rows of the Wigner matrices anew for each rotation, writes results into slices of older tensors, and reads sizes from
the device. Here the rows are selected once a forward, already sorted, and nothing is written in place. All of these
tensors have the size of all edges, and what a forward no longer makes, a backward no longer keeps.

Sums are the host's, term by term. Rounding differs at most where a matrix product depends on how its operand lies in
memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from fairchem.core.models.escn.escn import SO2Block
from fairchem.core.models.escn.so3 import CoefficientMapping, SO3_Embedding, SO3_Rotation
from torch import nn


class Coefficients(nn.Module):
    """Which of the L coefficients an edge keeps, those with abs(m) <= mmax, and in which order.

    Sorted by degree, as nodes have them, or by order: m = 0, then m = 1 with its real and imaginary parts, and so on.
    It has no entries in the state dict.

    Args:
        lmax: the largest degree.
        mmax: the largest order.

    Attributes:
        kept: (R,) the kept ones among the L, sorted by degree.
        kept_by_order: (R,) the same, sorted by order.
        to_degrees: (R,) where in the sorting by order each of the sorting by degree stands.
        sizes: how many there are of each order, parts counted.
    """

    def __init__(self, lmax: int, mmax: int) -> None:
        super().__init__()
        by_order = CoefficientMapping([lmax], [mmax], "cpu")
        order = by_order.to_m.argmax(dim=1)  # of each row of a permutation matrix, where its 1 is
        kept = CoefficientMapping([lmax], [lmax], "cpu").coefficient_idx(lmax, mmax)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("kept_by_order", kept[order], persistent=False)
        self.register_buffer("to_degrees", order.argsort(), persistent=False)
        self.sizes = [size * (1 if m == 0 else 2) for m, size in enumerate(by_order.m_size.tolist())]


class Features(SO3_Embedding):
    """The host's features, which also know how to get to the frames of the edges and back.

    Args:
        embedding: (N, L, C) coefficients of the nodes.
        coefficients: what edges keep of them.
        rotation: the host's Wigner matrices, (E, L, L).
    """

    def __init__(self, embedding: torch.Tensor, coefficients: Coefficients, rotation: SO3_Rotation) -> None:
        super().__init__(0, [rotation.lmax], embedding.shape[2], embedding.device, embedding.dtype)
        self.set_embedding(embedding)
        self.coefficients = coefficients
        self._to_edge = rotation.wigner[:, coefficients.kept_by_order]  # (E, R, L)
        self._from_edge = rotation.wigner_inv[:, :, coefficients.kept]  # (E, L, R)

    def clone(self) -> Features:
        """A second name for the same tensor, which no method writes into."""
        return copy.copy(self)

    def _expand_edge(self, edge_index: torch.Tensor) -> None:
        self.set_embedding(self.embedding.index_select(0, edge_index))  # (E, L, C)

    def _rotate(self, *_: Any) -> None:
        self.set_embedding(torch.bmm(self._to_edge, self.embedding))  # (E, R, C), by order

    def _grid_act(self, grids: nn.ModuleList, act: nn.Module, mapping: CoefficientMapping) -> None:
        grid = grids[mapping.lmax_list[0]][mapping.mmax_list[0]]
        by_degree = self.embedding[:, self.coefficients.to_degrees]  # (E, R, C)
        values = act(torch.einsum("bai,zic->zbac", grid.get_to_grid_mat(self.device), by_degree))
        self.set_embedding(torch.einsum("bai,zbac->zic", grid.get_from_grid_mat(self.device), values))

    def _rotate_inv(self, *_: Any) -> None:
        # Under autocast the host's are in full precision from here on too: messages are summed next.
        self.set_embedding(torch.bmm(self._from_edge, self.embedding).to(self.dtype))  # (E, L, C)


class _SO2Block(SO2Block):
    """The host's convolutions of `Features`, of any number of edges, none included."""

    def forward(self, x: Features, x_edge: torch.Tensor, _mapping: CoefficientMapping) -> Features:
        # Views would keep all orders until the backward pass, and be copied once for each of two linear layers.
        first, *others = (part.contiguous() for part in x.embedding.split(x.coefficients.sizes, dim=1))
        convolved = [self.fc2_m0(self.fc1_m0(first.flatten(1)) * self.act(self.fc1_dist0(x_edge)))]
        for convolution, part in zip(self.so2_conv, others, strict=True):
            complex_part = part.unflatten(1, (2, -1)).flatten(2)  # (E, 2, degrees * C)
            convolved.append(convolution(complex_part, x_edge).flatten(1))
        x.set_embedding(torch.cat(convolved, dim=1).unflatten(1, (-1, x.num_channels)))
        return x


def convolve_features(model: nn.Module) -> None:
    """Make every SO(2) block of ``model`` work on `Features`; parameters and state dict stay as they are."""
    for module in model.modules():
        if type(module) is SO2Block:
            # The host builds these deep inside its constructors, which offer no hook; the subclass adds no state.
            module.__class__ = _SO2Block
