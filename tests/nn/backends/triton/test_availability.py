from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dens_plugin.nn.backends.triton import availability

WITHOUT = """
import sys
sys.modules["triton"] = None
import torch
from dens_plugin.nn.backends.triton import aggregate, availability, degree_norm, rotate_to_edges
from dens_plugin.nn.backends.triton import order_planes, s2_activation, softmax_by_target
from dens_plugin.nn.backends.choice import Machine, machine_for
assert availability.triton_reason() == "Triton is not installed", availability.triton_reason()
assert machine_for(torch.ones(1)) is not Machine.TRITON
"""


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU has compute capability 8.0 and runs kernels; returns a setter of its properties."""

    def become(*, version="3.0.0", capability=(8, 0), cuda=True, probe=None):
        monkeypatch.setattr(availability, "triton", version and SimpleNamespace(__version__=version))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(availability, "_probe", lambda index: probe)

    return become


def test_imports_and_computes_without_it():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


def test_no_reason_against_a_fit_machine(gpu):
    gpu(version="3.6.0+git1234")
    for dtype in availability.STORAGE:
        assert availability.triton_reason(dtype) is None


@pytest.mark.parametrize(
    ("machine", "dtype", "reason"),
    [
        ({"version": None}, torch.float32, "not installed"),
        ({"version": "2.3.1"}, torch.float32, "2.3.1 is older than 3.0"),
        ({"cuda": False}, torch.float32, "no CUDA device"),
        ({"capability": (6, 1)}, torch.float32, "6.1 is below the 7.0"),
        ({"capability": (7, 0)}, torch.bfloat16, "7.0 is below the 8.0 that bfloat16 needs"),
        ({}, torch.float64, "do not store float64"),
        ({"probe": "no compiler"}, torch.float32, "no compiler"),
    ],
)
def test_each_reason_is_named(gpu, machine, dtype, reason):
    gpu(**machine)
    assert reason in availability.triton_reason(dtype)


def test_a_kernel_that_fails_to_build_is_a_reason(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(availability, "launch", fail)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(*shape))
    assert availability._probe.__wrapped__(0).endswith("Failed to find C compiler.")


def test_cpu_tensors_take_the_twin():
    assert not availability.uses_triton(torch.zeros(1))
