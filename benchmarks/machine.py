"""What a figure must be quoted with: hardware, versions, allocator, threads, the library of matrix products."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_PACKAGES = ("torch", "triton", "fairchem-core", "e3nn", "torch-geometric", "numpy", "dens-plugin")
_ALLOCATOR = ("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_THREADS = ("OMP_", "MKL_", "KMP_")


def hardware(device: str) -> dict[str, Any]:
    """Of this process, on a CPU or on the current CUDA device."""
    config = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": _gpu() if device == "cuda" else None,
        "torch": torch.__version__,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "gemm": blas.group(1) if blas else "unknown",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "thread_variables": _variables(_THREADS),
        "allocator": _variables(_ALLOCATOR),
        "torch_config": config,
    }


def is_tuned(machine: Mapping[str, Any]) -> bool:
    """Whether an environment variable tells the CPU's allocator to keep its pages."""
    return any(name.startswith(("MALLOC_", "LD_PRELOAD", "GLIBC_")) for name in machine["allocator"])


def onednn_calls(action: Callable[[], Any]) -> int:
    """How often an action on a CPU called oneDNN by name: without, matrix products are the BLAS library's."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        action()
    return sum(event.count for event in recorded.key_averages() if re.search("mkldnn|onednn", event.key.lower()))


def describe_machine(machine: Mapping[str, Any]) -> str:
    """One line for a reader."""
    allocator = " ".join(f"{key}={value}" for key, value in machine["allocator"].items()) or "default"
    where = machine["gpu"]["name"] if machine["gpu"] else machine["cpu"]
    versions = machine["versions"]
    return (
        f"{where}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}, "
        f"Triton {versions['triton']}, fairchem-core {versions['fairchem-core']}, GEMM {machine['gemm']}, "
        f"allocator {allocator}"
    )


def _variables(prefixes: tuple[str, ...]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith(prefixes)}


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": properties.total_memory / 2**30,
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the working tree that this file is in, with a plus where it was changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
