"""Signals that wait for the end of a step.

Slurm announces preemption and time limits by a signal, which submitit and others answer by saving and requeueing. In
the middle of a step that would save weights of one step with an optimiser of another, on one rank.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
from fairchem.core.common import distutils

_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class Interruption:
    """Within the context, remembers the signals that end a job instead of obeying them.

    Attributes:
        received: the number of the last signal that came and was not handed over; 0 if none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def hand_over(self, number: int) -> None:
        """Do now what the signal would have done when it came: call the handler before ours, or end the process.

        Args:
            number: the signal, which may have come to another rank.
        """
        self.received = 0
        handler = self._previous.get(number, signal.SIG_DFL)
        if callable(handler):
            handler(number, None)
        elif handler == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if not self.received:
            logging.warning(f"Received {signal.Signals(number).name}: saving at the end of this step.")
        self.received = number


def wait_for_others() -> None:
    """Go on when all ranks do, and end this process if another one ended, as submitit's first rank does to requeue."""
    if not distutils.initialized():
        return
    try:
        torch.distributed.barrier()
    except RuntimeError:
        sys.exit("another rank has ended the job")


def leave_to_trainer(_worker: int) -> None:
    """For loader workers: Slurm's signals reach them too, and the trainer needs them to finish its step."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def workers_let_go() -> Iterator[None]:
    """Where an error leaves the context, take leave of the loader's workers.

    The error's traceback holds the loader's iterator. A rank of a local launch that ends with it sends its workers
    SIGTERM, which they leave to the trainer, and would wait for them for ever.
    """
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
