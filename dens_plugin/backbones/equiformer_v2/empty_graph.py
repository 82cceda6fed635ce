"""fairchem modules that also work without edges.

fairchem's edge modules reshape to (E, -1), which is undefined for E = 0: a batch of isolated atoms, or a head of which
no atom counts. Here such a module runs on one edge to an extra atom whose row is then dropped, so that the result is
what summing over no edges gives, and every parameter has a zero gradient rather than none.
"""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common import gp_utils
from fairchem.core.models.equiformer_v2.input_block import EdgeDegreeEmbedding
from fairchem.core.models.equiformer_v2.transformer_block import SO2EquivariantGraphAttention
from torch import nn


class _EdgeDegreeEmbedding(EdgeDegreeEmbedding):
    def forward(
        self,
        atomic_numbers: torch.Tensor,
        edge_distance: torch.Tensor,
        edge_index: torch.Tensor,
        num_nodes: int,
        node_offset: int = 0,
    ) -> Any:
        if edge_index.shape[1] > 0:
            return super().forward(atomic_numbers, edge_distance, edge_index, num_nodes, node_offset)
        numbers, distance, edge = _one_edge(atomic_numbers, edge_distance, num_nodes + node_offset)
        return _without_last(super().forward(numbers, distance, edge, num_nodes + 1, node_offset))


class _GraphAttention(SO2EquivariantGraphAttention):
    def forward(
        self,
        x: Any,
        atomic_numbers: torch.Tensor,
        edge_distance: torch.Tensor,
        edge_index: torch.Tensor,
        node_offset: int = 0,
    ) -> Any:
        if edge_index.shape[1] > 0:
            return super().forward(x, atomic_numbers, edge_distance, edge_index, node_offset)
        if gp_utils.initialized():  # ranks gather their atoms by number, and an extra one would shift all others
            raise ValueError("graph parallelism needs edges on every rank; use fewer ranks per graph (--gp-gpus)")
        extended = x.clone()
        extended.set_embedding(torch.cat([x.embedding, x.embedding.new_zeros(1, *x.embedding.shape[1:])]))
        numbers, distance, edge = _one_edge(atomic_numbers, edge_distance, len(x.embedding) + node_offset)
        return _without_last(super().forward(extended, numbers, distance, edge, node_offset))


_SAFE = {EdgeDegreeEmbedding: _EdgeDegreeEmbedding, SO2EquivariantGraphAttention: _GraphAttention}


def allow_empty_graphs(model: nn.Module) -> None:
    """Make every edge module of ``model`` work without edges; parameters and state dict stay as they are."""
    for module in model.modules():
        if type(module) in _SAFE:
            # fairchem builds these deep inside its constructors, which offer no hook; the subclasses add no state.
            module.__class__ = _SAFE[type(module)]


def _one_edge(
    atomic_numbers: torch.Tensor, edge_distance: torch.Tensor, extra: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Elements, edge features (1, K) and index (2, 1) of a single edge from atom 0 to the atom ``extra``."""
    numbers = torch.cat([atomic_numbers, atomic_numbers[:1]])
    edge_index = torch.tensor([[0], [extra]], device=edge_distance.device)
    return numbers, edge_distance.new_zeros(1, edge_distance.shape[1]), edge_index


def _without_last(embedding: Any) -> Any:
    embedding.set_embedding(embedding.embedding[:-1])
    return embedding
