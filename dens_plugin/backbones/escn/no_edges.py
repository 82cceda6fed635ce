"""fairchem's eSCN layers that also work without edges, which they cannot reshape: messages are then zero."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.models.escn.escn import MessageBlock
from torch import nn

from dens_plugin.nn.zero_gradients import with_zero_gradients


class EdgelessMessageBlock(MessageBlock):
    """fairchem's messages, of any number of edges, none included."""

    def forward(
        self,
        x: Any,
        atomic_numbers: torch.Tensor,
        edge_distance: torch.Tensor,
        edge_index: torch.Tensor,
        *rotations_and_mapping: Any,
    ) -> Any:
        """(N, L, C) sums of messages."""
        if edge_index.shape[1] > 0:
            return super().forward(x, atomic_numbers, edge_distance, edge_index, *rotations_and_mapping)
        out = x.clone()
        zeros = with_zero_gradients(torch.zeros_like(x.embedding), self.parameters())
        out.set_embedding(zeros.clone())  # fairchem writes into it
        return out


def allow_no_edges(model: nn.Module) -> None:
    """Make every message block of ``model`` work without edges; parameters and state dict stay as they are."""
    for module in model.modules():
        if type(module) is MessageBlock:
            # fairchem builds these deep inside its constructors, which offer no hook; the subclass adds no state.
            module.__class__ = EdgelessMessageBlock
