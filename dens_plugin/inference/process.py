"""What a process has one of, lent to fairchem and given back as it was: a calculator is a guest in a user's script."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def lent_process(devices: Sequence[int] = ()) -> Iterator[None]:
    """Within the context, floats are float32 and fairchem may seed, log and set what it likes; nothing of it stays.

    Args:
        devices: numbers of the GPUs whose random states are kept too.
    """
    dtype, numpy_state, python_state = torch.get_default_dtype(), np.random.get_state(), random.getstate()
    cudnn, root = torch.backends.cudnn, logging.getLogger()
    cudnn_flags, level, handlers = (cudnn.deterministic, cudnn.benchmark), root.level, list(root.handlers)
    with torch.random.fork_rng(devices):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            cudnn.deterministic, cudnn.benchmark = cudnn_flags
            root.handlers[:] = handlers
            root.setLevel(level)


@contextmanager
def float32_and_own_numbers(devices: Sequence[int] = ()) -> Iterator[None]:
    """The same for a forward pass, which touches no more than torch's default type and random states."""
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
