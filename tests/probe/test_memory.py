from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from dens_plugin.compat import is_out_of_memory
from dens_plugin.probe.memory import CpuMeter, bytes_of

SIZE = 64 * 2**20


@pytest.mark.parametrize(
    ("text", "expected"), [("32GB", 32e9), ("32 GiB", 2**35), ("1.5G", 1.5 * 2**30), ("2", 2**31), ("500mb", 5e8)]
)
def test_amounts(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "0GB", "3 apples", "nan"])
def test_no_amounts(text):
    with pytest.raises(ValueError, match="as 32GB, got"):
        bytes_of(text)


def test_peak_is_that_of_the_work_since_the_start():
    """In a process of its own: in a large one other threads allocate and free meanwhile."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        idle, busy, after, available = pool.submit(peaks_around, SIZE).result()
    assert busy - idle >= 0.9 * SIZE
    assert busy - after >= 0.5 * SIZE
    assert after < available


def peaks_around(size):
    meter = CpuMeter()
    meter.start()
    idle = meter.peak()
    torch.ones(size // 4)
    busy = meter.peak()
    meter.start()
    return idle, busy, meter.peak(), meter.available()


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60)
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
