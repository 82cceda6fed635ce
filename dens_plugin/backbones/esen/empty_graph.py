"""eSEN without edges: isolated atoms get what they get in a batch beside other structures.

Where a batch has no edge at all, fairchem leaves out all its blocks, so that the energy of an isolated atom would
depend on its company; and its gradient head cannot differentiate an energy that no position has entered. Here such a
graph has one edge, to an extra atom whose row is dropped after every sum over edges. Every parameter then has a zero
gradient rather than none.
"""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.models.esen.esen_block import Edgewise
from fairchem.core.models.esen.nn.embedding import EdgeDegreeEmbedding
from torch import nn

_NOWHERE = -1  # the target of the only edge of a graph without edges; look-ups by it find some atom's row


def with_edge_to_nowhere(graph: dict[str, Any], pos: torch.Tensor, cutoff: float) -> dict[str, Any]:
    """A graph with one edge from the first atom to nowhere, for modules that went through `allow_empty_graphs`.

    Args:
        graph: fairchem's, without edges.
        pos: (N, 3) positions in Å, of which the edge is formally a function, with derivative zero.
        cutoff: Å; the edge is half as long.
    """
    vector = pos.new_tensor([[cutoff / 2, 0.0, 0.0]]) + (pos[:1] - pos[:1])  # (1, 3)
    return {
        **graph,
        "edge_index": torch.tensor([[0], [_NOWHERE]], device=pos.device),
        "edge_distance": vector.norm(dim=-1),
        "edge_distance_vec": vector,
    }


def allow_empty_graphs(model: nn.Module) -> None:
    """Make every edge module of ``model`` know the edge to nowhere; parameters and state dict stay as they are."""
    for module in model.modules():
        if type(module) in _SAFE:
            # fairchem builds these inside its constructors, which offer no hook; the subclasses add no state.
            module.__class__ = _SAFE[type(module)]


class _EdgeDegreeEmbedding(EdgeDegreeEmbedding):
    def forward(
        self,
        x: torch.Tensor,
        x_edge: torch.Tensor,
        edge_distance: torch.Tensor,
        edge_index: torch.Tensor,
        wigner_inv: torch.Tensor,
        node_offset: int = 0,
    ) -> torch.Tensor:
        if not _leads_nowhere(edge_index):
            return super().forward(x, x_edge, edge_distance, edge_index, wigner_inv, node_offset)
        extended, edge = _with_extra_atom(x)
        return super().forward(extended, x_edge, edge_distance, edge, wigner_inv)[:-1]


class _Edgewise(Edgewise):
    def forward(
        self,
        x: torch.Tensor,
        x_edge: torch.Tensor,
        edge_distance: torch.Tensor,
        edge_index: torch.Tensor,
        wigner: torch.Tensor,
        wigner_inv: torch.Tensor,
        node_offset: int = 0,
    ) -> torch.Tensor:
        if not _leads_nowhere(edge_index):
            return super().forward(x, x_edge, edge_distance, edge_index, wigner, wigner_inv, node_offset)
        extended, edge = _with_extra_atom(x)
        return super().forward(extended, x_edge, edge_distance, edge, wigner, wigner_inv)[:-1]


_SAFE = {EdgeDegreeEmbedding: _EdgeDegreeEmbedding, Edgewise: _Edgewise}


def _leads_nowhere(edge_index: torch.Tensor) -> bool:
    return edge_index.shape[1] == 1 and edge_index[1, 0].item() == _NOWHERE


def _with_extra_atom(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N + 1, L, C) with a row of zeros, and the index (2, 1) of an edge from the first atom to that row."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])]), torch.tensor([[0], [len(x)]], device=x.device)
