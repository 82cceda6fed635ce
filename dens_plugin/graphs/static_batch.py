"""Batches at addresses that stay: what a captured graph reads in every replay, whatever the loader sends."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from dens_plugin.padding.signature import named_tensors

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
            self.batch[key] = _placed(batch[key], device)
        self._tensors = [tensor for _, tensor in named_tensors(self.batch)]

    def fill(self, batch: Batch) -> None:
        """Take over the numbers of a batch of the same signature; the device is not waited for."""
        for own, (_, value) in zip(self._tensors, named_tensors(batch), strict=True):
            own.copy_(value, non_blocking=True)


def _placed(value: Any, device: torch.device) -> Any:
    """A copy of the tensors of a record, in the order of their memory, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _placed(part, device) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_placed(part, device) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_placed(part, device) for part in value)
    return value
