"""What would make fairchem wait for a GPU, found on a machine without one.

Functions run on the device ``meta``, whose tensors have no values, so that every question to them is an error. Copies
from the CPU are found by where tensors come from: whatever a later call needs is the result of an operation on the
device, or was there at an earlier one already, as inputs, parameters and constants are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def copies_from_host(function: Callable[[], Any]) -> list[str]:
    """Operations of a later call that need a tensor from the CPU; the first may make constants."""
    function()
    first = _Origins([])
    with first:
        function()
    second = _Origins(first.foreign)
    with second:
        function()
    return second.operations


class _Origins(TorchDispatchMode):
    """Tensors that operations need and that are neither known nor the result of another on the device."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self._known = {id(tensor): tensor for tensor in known}  # kept, so that no other takes their ids
        self.foreign: list[torch.Tensor] = []
        self.operations: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._known or (tensor.is_cpu and tensor.dim() > 0):  # a number goes with a kernel
                self.foreign.append(tensor)
                self.operations.append(f"{function} of {tuple(tensor.shape)}")
        out = function(*args, **(kwargs or {}))
        self._known |= {id(tensor): tensor for tensor in _tensors(out) if tensor.is_meta}
        return out


def _tensors(record: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(record) if isinstance(leaf, torch.Tensor)]
