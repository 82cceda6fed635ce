"""Activation checkpointing of some blocks: as much memory for as much time as a device needs.

fairchem's ``activation_checkpoint`` keeps the activations of all blocks or of none. A number keeps those of all but the
first so many blocks, which are computed a second time in the backward pass: each gives back the memory of a block and
takes the time of its forward pass, about a third of its share of a step. The first blocks, since their turn comes when
those of the others are already freed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.transformer_block import TransBlockV2
from torch.utils.checkpoint import checkpoint

from dens_plugin.backbones.forward_pass import Now, Pass


class RecomputedBlock(TransBlockV2):
    """fairchem's block, its activations computed a second time instead of kept; same numbers, dropout included."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """As fairchem's."""
        if not torch.is_grad_enabled():
            return super().forward(*inputs, **options)
        forward = super().forward
        shared: Pass | None = getattr(self.ga, "shared", None)
        if shared is not None:
            forward = partial(_in_pass, forward, shared, shared.now)
        # Not reentrant: that form finds no tensors in fairchem's embeddings, and then has no gradients.
        return checkpoint(forward, *inputs, use_reentrant=False, **options)


def _in_pass(forward: Callable[..., Any], shared: Pass, now: Now, *inputs: Any, **options: Any) -> Any:
    with shared.again(now):
        return forward(*inputs, **options)


def checkpoint_blocks(backbone: EquiformerV2Backbone) -> None:
    """Let the backbone recompute as many of its first blocks as its ``activation_checkpoint`` says.

    Args:
        backbone: with ``activation_checkpoint`` true for all blocks, false for none, or a number of them; it is false
            afterwards, so that fairchem leaves all blocks to their own forward.

    Raises:
        ValueError: for a number that the backbone does not have.
    """
    for block in backbone.blocks[: _count(backbone.activation_checkpoint, len(backbone.blocks))]:
        # fairchem builds these in its constructor, which offers no hook; the subclass adds no state.
        block.__class__ = RecomputedBlock
    backbone.activation_checkpoint = False


def _count(wanted: bool | int | None, blocks: int) -> int:
    if wanted is None or isinstance(wanted, bool):
        return blocks if wanted else 0
    if not isinstance(wanted, int) or not 0 <= wanted <= blocks:
        raise ValueError(
            f"activation_checkpoint must be true, false or a number of blocks from 0 to {blocks}, got {wanted!r}"
        )
    return wanted
