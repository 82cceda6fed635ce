"""What a record of an LMDB file looks like by fairchem's own converters, and records that look otherwise.

| field | by fairchem | where it is otherwise |
|---|---|---|
| ``pos``, ``atomic_numbers`` | tensors, ``pos`` float32 (N, 3) | needed |
| ``cell`` | float32 (1, 3, 3) | (3, 3) is given a first dimension |
| ``natoms`` | the number of atoms | counted |
| ``fixed``, ``tags`` | (N,) | zero: all atoms are free |
| ``energy``, ``forces``, ... | a number, float32 | NumPy's arrays become tensors, float64 becomes float32 |

A batch takes its fields and their types from its first structure, and networks compute in float32: without this,
training ends in the middle of a network, or after an epoch in validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

_NEEDED = ("pos", "atomic_numbers")
_NEUTRAL = ("fixed", "tags")


def completed(record: Data) -> Data:
    """A record in the form of fairchem's own; the same object where it has that form.

    Raises:
        TypeError: If it is no structure.
        ValueError: If it has no positions or elements.
    """
    if not isinstance(record, Data):
        raise TypeError(f"a record is {type(record).__name__} and no structure")
    changes = dict(_changes(record))
    if not changes:
        return record
    copy = record.clone()  # the record may be kept by a data set in memory
    for name, value in changes.items():
        copy[name] = value
    return copy


def departures(record: Data) -> tuple[str, ...]:
    """How a record differs from fairchem's own, a phrase each; what is merely missing and neutral is not told."""
    return tuple(_phrase(record, name) for name, _ in _changes(record) if name not in _NEUTRAL)


def _changes(record: Data) -> Iterator[tuple[str, Any]]:
    """The fields that are otherwise, as they should be."""
    for name in _NEEDED:
        if name not in record:
            raise ValueError(f"it has no field `{name}`; it has {', '.join(sorted(record.to_dict()))}: convert it anew")
    for name, value in record.to_dict().items():
        usual = _usual(name, value)
        if usual is not value:
            yield name, usual
    natoms = len(record.pos)
    if "natoms" not in record:
        yield "natoms", natoms
    for name in _NEUTRAL:
        if name not in record:
            yield name, torch.zeros(natoms, dtype=torch.long)


def _usual(name: str, value: Any) -> Any:
    """A value in the type that fairchem has; the value itself where it has that."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.float64:
        value = value.float()
    return value[None] if name == "cell" and value.shape == (3, 3) else value


def _phrase(record: Data, name: str) -> str:
    if name not in record:
        return f"no `{name}`"
    value = record[name]
    if isinstance(value, np.ndarray | np.generic):
        return f"`{name}` of NumPy"
    return f"`{name}` {tuple(value.shape)}" if value.dtype != torch.float64 else f"`{name}` in float64"
