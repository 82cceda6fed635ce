"""A CUDA graph on a machine without CUDA: operations are recorded at their addresses and done again without Python.

As there, nothing is computed while it is recorded; what Python computed is frozen; memory of the outside that was freed
is gone; recordings share their memory, so that a replay spoils what the others left; random numbers follow torch's
generator; and every question to a tensor while something is recorded is an error.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dens_plugin.graphs.capture import Recording

_QUESTIONS = (
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
)


class AskedError(RuntimeError):
    """A GPU would have to be waited for, which ends a capture."""


class PretendedRecorder:
    """Records what plain torch does on a CPU, in place of `CudaRecorder`."""

    def __init__(self):
        self.recordings = []
        self.replays = 0

    def beside(self):
        return nullcontext()

    @contextmanager
    def watched(self):
        with _questions_refused(), _Watch():
            yield

    def random_state(self):
        return torch.get_rng_state()

    def set_random_state(self, state):
        torch.set_rng_state(state)

    def record(self, function):
        random, mode = torch.get_rng_state(), _Operations()
        try:
            with _questions_refused(), mode:
                outputs = function()
        finally:
            torch.set_rng_state(random)
            mode.undo()
        assert all(mode.is_inside(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
        self.recordings.append(mode)
        mode.spoil()

        def replay():
            self.replays += 1
            for recording in self.recordings:
                recording.spoil()
            mode.replay()

        return Recording(replay, outputs)


class _Outside:
    """A tensor that was there before: its address, and nothing that keeps it alive."""

    def __init__(self, tensor):
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.place = tensor.storage_offset(), tensor.shape, tensor.stride()
        self.dtype = tensor.dtype

    def tensor(self):
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        assert storage is not None, f"memory that the graph reads was freed: {self.dtype} {self.place}"
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.place)


class _Operations(TorchDispatchMode):
    """Operations with the places of what they read and write."""

    def __init__(self):
        super().__init__()
        self._steps = []
        self._inside = {}  # address of a storage -> a tensor that keeps it
        self._before = {}  # the same -> storage from outside, and what was in it
        self._constants = set()

    def is_inside(self, tensor):
        return tensor.untyped_storage()._cdata in self._inside

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        _require_no_question(function, args, kwargs)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if function._schema.name == "aten::lift_fresh" and not self.is_inside(read[0]):
            if read[0].dim() > 0:
                raise AskedError(f"a copy of {tuple(read[0].shape)} from the CPU")
            self._keep(read[0])
            self._constants.add(read[0].untyped_storage()._cdata)
        for written in _written(function, args, kwargs):
            address = written.untyped_storage()._cdata
            if not self.is_inside(written) and address not in self._before:
                self._before[address] = written.untyped_storage(), written.untyped_storage().clone()
        out = function(*args, **kwargs)
        known = {leaf.untyped_storage()._cdata for leaf in read}
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        is_new = [leaf.untyped_storage()._cdata not in known for leaf in made]
        if any(is_new) or _written(function, args, kwargs):
            inputs, spec = tree_flatten((args, kwargs))
            inputs = [self._place(leaf) for leaf in inputs]
            self._steps.append(
                (function, inputs, spec, [leaf if new else None for leaf, new in zip(made, is_new, strict=True)])
            )
        for leaf, new in zip(made, is_new, strict=True):
            if new:
                self._keep(leaf)
        return out

    def _keep(self, tensor):
        self._inside[tensor.untyped_storage()._cdata] = tensor

    def _place(self, leaf):
        return leaf if not isinstance(leaf, torch.Tensor) or self.is_inside(leaf) else _Outside(leaf)

    def undo(self):
        """A capture computes nothing."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()

    def spoil(self):
        """Overwrite what was computed, as others do that have the same memory."""
        for address, tensor in self._inside.items():
            if address not in self._constants:
                _bytes(tensor).fill_(255)  # NaN, or an index that is nowhere

    @torch.no_grad()
    def replay(self):
        for function, inputs, spec, made in self._steps:
            leaves = [leaf.tensor() if isinstance(leaf, _Outside) else leaf for leaf in inputs]
            args, kwargs = tree_unflatten(leaves, spec)
            out = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
            for place, value in zip(made, out, strict=True):
                if place is not None and place.numel() > 0:
                    place.copy_(value)


class _Watch(TorchDispatchMode):
    """Operations are computed, and questions are errors."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        _require_no_question(function, args, kwargs or {})
        return function(*args, **(kwargs or {}))


def _bytes(tensor):
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _written(function, args, kwargs):
    """Tensors that an operation writes into."""
    found = []
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return found


def _require_no_question(function, args, kwargs):
    name = function._schema.name.removeprefix("aten::")
    indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
    by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
    by_counts = name == "repeat_interleave" and len(args) == 1 and kwargs.get("output_size") is None
    if name in _QUESTIONS or by_mask or by_counts:
        raise AskedError(f"{name} while a graph is recorded")


@contextmanager
def _questions_refused():
    """Those that reach a CPU's memory without an operation, and new seeds."""

    def refuse(*_, **__):
        raise AskedError("numbers of a tensor, or a new seed, while a graph is recorded")

    with ExitStack() as stack:
        for owner, name in ((torch.Tensor, "tolist"), (torch.Tensor, "numpy"), (torch, "manual_seed")):
            stack.enter_context(mock.patch.object(owner, name, refuse))
        yield


@contextmanager
def as_on_a_gpu():
    """Within the context tensors say that they are on a GPU, which the code of this package does not ask."""
    with mock.patch.object(torch.Tensor, "is_cuda", property(lambda _: True), create=True):
        yield
