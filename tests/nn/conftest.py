from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.so2 import activation, grid_mlp, rotated_edges


@pytest.fixture
def exact(monkeypatch):
    """Double precision, and so little at a time that there are several pieces of edges and parts of grids."""
    monkeypatch.setattr(rotated_edges, "_CPU_EDGES", 3)
    monkeypatch.setattr(activation, "_GRID_BYTES", 700)
    monkeypatch.setattr(grid_mlp, "_GRID_BYTES", 700)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(default)
