"""Batches at addresses that stay: what a captured graph reads in every replay, whatever the loader sends."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from dens_plugin.padding.signature import named_tensors, with_tensors

if TYPE_CHECKING:
    from torch_geometric.data import Batch


class StaticBatch:
    """A batch whose tensors stay where they are.

    Args:
        batch: the first that it holds.
        device: where it shall be.

    Attributes:
        batch: what a step reads.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.batch = copy.copy(batch)
        for key in batch.keys():  # noqa: SIM118  (of PyG's, which is no mapping)
            self.batch[key] = with_tensors(batch[key], lambda value: value.to(device, copy=True).contiguous())
        self._tensors = [tensor for _, tensor in named_tensors(self.batch)]

    def fill(self, batch: Batch) -> None:
        """Take over the numbers of a batch of the same signature; the device is not waited for."""
        for own, (_, value) in zip(self._tensors, named_tensors(batch), strict=True):
            own.copy_(value, non_blocking=True)
