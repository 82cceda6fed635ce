from __future__ import annotations

import kernel_twins
import pytest
import torch

from dens_plugin.nn.equiformer_v2 import fused  # noqa: F401  (whose kernels are replaced)
from dens_plugin.nn.escn import message_sum  # noqa: F401
from dens_plugin.nn.so2 import activation, grid_mlp, rotated_edges


@pytest.fixture
def twins_of_kernels(monkeypatch):
    """Triton's kernels in plain torch, which has double precision."""
    kernel_twins.stand_in(monkeypatch)


@pytest.fixture
def exact(monkeypatch, twins_of_kernels):
    """Double precision, and so little at a time that there are several pieces of edges and parts of grids."""
    monkeypatch.setattr(rotated_edges, "_CPU_EDGES", 3)
    monkeypatch.setattr(activation, "_GRID_BYTES", 700)
    monkeypatch.setattr(grid_mlp, "_GRID_BYTES", 700)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(default)
