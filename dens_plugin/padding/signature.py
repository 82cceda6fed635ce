"""The tensors of a batch, and what batches share that one recording can compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from dens_plugin.fields import NEIGHBOURS

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.backbones.neighbours import Neighbours

Signature = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


def named_tensors(record: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a batch, also those in its records, with the ways to them, always in the same order."""
    if isinstance(record, torch.Tensor):
        yield name, record
    elif isinstance(record, tuple) and hasattr(record, "_fields"):
        for key, value in zip(record._fields, record, strict=True):
            yield from named_tensors(value, f"{name}.{key}")
    elif isinstance(record, (list, tuple)):
        for index, value in enumerate(record):
            yield from named_tensors(value, f"{name}.{index}")
    elif hasattr(record, "keys"):
        for key in sorted(record.keys()):
            yield from named_tensors(record[key], f"{name}.{key}" if name else key)


def with_tensors(record: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A record of tensors, tuples, lists and dictionaries with what a function makes of each tensor."""
    if isinstance(record, torch.Tensor):
        return function(record)
    if isinstance(record, dict):
        return {key: with_tensors(value, function) for key, value in record.items()}
    if isinstance(record, tuple) and hasattr(record, "_fields"):
        return type(record)(*(with_tensors(value, function) for value in record))
    if isinstance(record, (tuple, list)):
        return type(record)(with_tensors(value, function) for value in record)
    return record


def signature(batch: Batch) -> Signature:
    """Names, shapes and dtypes of all tensors of a batch: batches that were padded to one budget have the same.

    And, of a record of neighbours, the room for an atom's edges, which eSCN reads: it is coarse, so that few differ.
    """
    record: Neighbours | None = batch.get(NEIGHBOURS)
    room = () if record is None else (("room", record.degrees.room, torch.int64),)
    return (*((name, tuple(value.shape), value.dtype) for name, value in named_tensors(batch)), *room)
