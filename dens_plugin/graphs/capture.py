"""Recording what a function asks of a GPU, so that it is asked again without the function.

A CUDA graph holds kernels and addresses and nothing of Python: a number that Python computed is a constant in it. What
is to differ between two replays must be in tensors that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch


class Recording(NamedTuple):
    """What was recorded.

    Attributes:
        replay: does it again, at the same addresses.
        outputs: what the function returned; each replay writes it anew, and one of another recording may spoil it.
    """

    replay: Callable[[], None]
    outputs: Any


class Recorder(Protocol):
    """What records; all its recordings share their memory."""

    def beside(self) -> AbstractContextManager[None]:
        """Within the context things are computed as usual, where recordings will be made."""

    def watched(self) -> AbstractContextManager[None]:
        """Within the context, whatever would wait for the device is a RuntimeError, and harms nothing."""

    def random_state(self) -> torch.Tensor:
        """Of the device's generator."""

    def set_random_state(self, state: torch.Tensor) -> None:
        """Go back to it."""

    def record(self, function: Callable[[], Any]) -> Recording:
        """Record a function that was called before in the contexts above. It is not computed."""


class CudaRecorder:
    """Records CUDA graphs, on a stream of its own and with memory of their own.

    Only this thread's own mistakes end a capture (``thread_local``): the threads that pin a loader's memory and that
    watch NCCL go on asking CUDA for things that the strictest mode would not allow.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """On the stream of the recordings."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """By torch's own watch, which sees most of what ends a capture."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def random_state(self) -> torch.Tensor:
        """Of torch's generator for the device."""
        return torch.cuda.get_rng_state(self._device)

    def set_random_state(self, state: torch.Tensor) -> None:
        """Go back to it."""
        torch.cuda.set_rng_state(state, self._device)

    def record(self, function: Callable[[], Any]) -> Recording:
        """A CUDA graph of the function."""
        graph = torch.cuda.CUDAGraph()
        options = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.device(self._device), torch.cuda.graph(graph, **options):
            outputs = function()
        return Recording(graph.replay, outputs)


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on a device; None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None
