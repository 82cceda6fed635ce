"""Peak memory of a training step and of inference, each in a fresh process.

It is the peak of two steps, so that AdamW's moments are there, or of two inferences on the largest batch, above what
the process had before it built the network: on CUDA of allocated bytes, on a CPU of resident pages, from the kernel's
own high-water mark (``VmHWM``, which can be reset, while ``ru_maxrss`` is inherited from the parent process). A toy
network runs first, so that lazy imports and compiled functions do not count. Linux only.
"""

from __future__ import annotations

import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import torch
from contestants import build_one
from measures import STEP_MEMORY
from modes import pairing
from sizes import Settings, paper_settings
from structures import Sample
from timing import inference_actions, step_actions


class Case(NamedTuple):
    """A network on some batches; can be sent to another process.

    Attributes:
        model: whose contestants take part.
        settings: hyper-parameters of the backbone.
        precision: of `modes.PRECISIONS`.
        device: ``cpu`` or ``cuda``.
        threads: of the CPU.
        draw: makes the batches.
    """

    model: str
    settings: Settings
    precision: str
    device: str
    threads: int
    draw: Callable[[], list[Sample]]


def in_fresh_process(case: Case, measure: str, name: str) -> float:
    """`peak_memory` in a process of its own; NaN if there was not enough, or the process was killed for it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(peak_memory, case, measure, name).result()
        except (BrokenProcessPool, torch.cuda.OutOfMemoryError):
            return float("nan")


def peak_memory(case: Case, measure: str, name: str) -> float:
    """MiB at the peak of a contestant; for a process that has done nothing else."""
    torch.set_num_threads(case.threads)
    by_size = sorted(case.draw(), key=lambda sample: len(sample.clean.pos))
    toy = paper_settings(case.model, lmax=1, layers=1, channels=8)
    _run_twice(case._replace(settings=toy), measure, name, by_size[0])
    gc.collect()
    before = _memory(case.device)
    return (_run_twice(case, measure, name, by_size[-1]) - before) / 2**20


def _run_twice(case: Case, measure: str, name: str, sample: Sample) -> int:
    """Bytes at the peak of two steps or inferences of a new network."""
    pair = pairing(case.precision, case.device)
    networks = {name: build_one(case.model, name, case.settings, case.device, pair.mode(name).key)}
    if measure == STEP_MEMORY:
        actions = step_actions(case.model, networks, [sample], pair)
    else:
        actions = inference_actions(networks, [sample], pair)
    _reset_peak(case.device)
    actions[name](0)
    actions[name](0)
    return _memory(case.device, peak=True)


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM


def _memory(device: str, *, peak: bool = False) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s*(\d+) kB", status).group(1))
