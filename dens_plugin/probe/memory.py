"""Memory of the device that a run trains on: how much there is, and the peak that some work reached."""

from __future__ import annotations

import contextlib
import gc
import math
import re
from abc import ABC, abstractmethod
from pathlib import Path

import torch

_UNITS = {"": 2**30, "G": 2**30, "GIB": 2**30, "GB": 10**9, "M": 2**20, "MIB": 2**20, "MB": 10**6}
_PROCESS, _MACHINE = Path("/proc/self"), Path("/proc/meminfo")
_OF_GROUP = Path("/sys/fs/cgroup/memory.max")


class Meter(ABC):
    """Peaks of one device."""

    @abstractmethod
    def available(self) -> float:
        """Bytes that this process may use, with those that it uses now."""

    @abstractmethod
    def start(self) -> None:
        """Forget earlier peaks."""

    @abstractmethod
    def peak(self) -> float:
        """Bytes at the peak since `start`, of everything that must fit."""

    def wait(self) -> None:  # noqa: B027  (a CPU has nothing to wait for)
        """Return when all work is done."""


class CudaMeter(Meter):
    """A GPU: what torch reserved of it, which is what it allocated and what it could not use in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def available(self) -> float:
        """What is free, and what torch has reserved already."""
        return torch.cuda.mem_get_info(self._device)[0] + torch.cuda.memory_reserved(self._device)

    def start(self) -> None:
        """Hand back what is cached, so that the next peak is that of the next work alone."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> float:
        """The most that was reserved."""
        return torch.cuda.max_memory_reserved(self._device)

    def wait(self) -> None:
        """Return when the device is idle."""
        torch.cuda.synchronize(self._device)


class CpuMeter(Meter):
    """This process on Linux: its resident memory, libraries included."""

    def available(self) -> float:
        """What the machine has left for this process, or the limit of its control group."""
        left = _kilobytes(_MACHINE, "MemAvailable") + _kilobytes(_PROCESS / "status", "VmRSS")
        limit = _OF_GROUP.read_text().strip() if _OF_GROUP.is_file() else "max"
        return min(1024 * left, math.inf if limit == "max" else float(limit))

    def start(self) -> None:
        """Let the kernel forget the peak; where it may not, peaks are those of the process so far."""
        gc.collect()
        with contextlib.suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")

    def peak(self) -> float:
        """The high-water mark of the resident memory."""
        return 1024 * _kilobytes(_PROCESS / "status", "VmHWM")


def meter_of(device: torch.device) -> Meter:
    """The meter of a device."""
    return CudaMeter(device) if device.type == "cuda" else CpuMeter()


def bytes_of(text: str) -> float:
    """The bytes of ``32GB`` (10^9), ``32GiB``, ``32G`` or ``32`` (2^30), ``500MB`` or ``500MiB``.

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    if found is None or found[2].upper() not in _UNITS or not float(found[1]) > 0:
        raise ValueError(f"an amount of memory is a number with GB, GiB, MB or MiB, as 32GB, got '{text}'")
    return float(found[1]) * _UNITS[found[2].upper()]


def _kilobytes(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} does not say {name}; give --memory, or probe on the GPU that is to train")
    return int(found[1])
