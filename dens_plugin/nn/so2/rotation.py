"""Between a target's frame and those of its edges, a piece at a time.

    expand:  x_e = D_e x_target        collect:  x_target = sum over its edges e of  D_e^T x_e

D_e (S, L) are rows of the Wigner-D matrix. Edges of one target rotate the same features: where all targets of a piece
have as many edges, their matrices stack into one and the sum over the edges is part of the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.triton.aggregate import aggregate
from dens_plugin.nn.so2 import by_loops
from dens_plugin.nn.so2.rotated_edges import Piece, RotatedEdges
from dens_plugin.nn.so2.tf32 import backward_as_forward


def rotate_back(features: torch.Tensor, edges: RotatedEdges) -> torch.Tensor:
    """Sum over the edges of every target in the nodes' frame, with its gradient.

    Args:
        features: (E, S, C).
        edges: E of them, to M targets.

    Returns:
        (M, (lmax + 1)^2, C).
    """
    if machine_for(features) is Machine.TRITON:
        scale = edges.packed.new_ones(len(edges.layout))
        return aggregate(features, None, edges.rotation, scale, edges.offsets, edges.row)
    out: torch.Tensor = _RotateBack.apply(features, edges)
    return out


def expand(features: torch.Tensor, edges: RotatedEdges, piece: Piece) -> torch.Tensor:
    """Features of the targets in the frames of their edges; autograd does not see it.

    Args:
        features: (M, (lmax + 1)^2, C), of all targets.
        edges: of all targets.
        piece: which of them.

    Returns:
        (e, S, C), of the edges of the piece.
    """
    if machine_for(features, edges.packed) is Machine.CPU:
        return by_loops.expand(features, edges, piece)
    rotation = edges.rotation[piece.edges].to(features.dtype)
    if piece.degree is None:
        return torch.bmm(rotation, features[edges.row[piece.edges]])
    stacked = _stacked(rotation, piece.degree)
    return torch.bmm(stacked, features[piece.targets]).view(*rotation.shape[:2], features.shape[2])


def collect(features: torch.Tensor, edges: RotatedEdges, piece: Piece, out: torch.Tensor) -> None:
    """Add the sum over the edges of every target, rotated back: the transpose of `expand`.

    Args:
        features: (e, S, C), of the edges of the piece.
        edges: of all targets.
        piece: which of them.
        out: (M, (lmax + 1)^2, C), of all targets.
    """
    if machine_for(features, edges.packed, out) is Machine.CPU:
        by_loops.collect(features, edges, piece, out)
        return
    rotation = edges.rotation[piece.edges].to(features.dtype)
    if piece.degree is None:
        back = torch.bmm(rotation.transpose(1, 2), features)
        out.index_add_(0, edges.row[piece.edges], back.to(out.dtype))
        return
    stacked = _stacked(rotation, piece.degree)
    of_targets = features.reshape(*stacked.shape[:2], features.shape[2])
    out[piece.targets] += torch.bmm(stacked.transpose(1, 2), of_targets)


def _stacked(rotation: torch.Tensor, degree: int) -> torch.Tensor:
    """(m, k S, L) for m targets of k = ``degree`` edges each."""
    edges, size, columns = rotation.shape
    return rotation.view(edges // degree, degree * size, columns)


@backward_as_forward
class _RotateBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, edges: RotatedEdges) -> torch.Tensor:
        ctx.edges = edges
        out = features.new_zeros(len(edges.targets), (edges.layout.lmax + 1) ** 2, features.shape[2])
        for piece in edges.pieces:
            collect(features[piece.edges], edges, piece, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        edges = ctx.edges
        out = grad.new_empty(len(edges.source), len(edges.layout), grad.shape[2])
        for piece in edges.pieces:
            out[piece.edges] = expand(grad, edges, piece)
        return out, None
