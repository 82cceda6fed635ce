from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.backends.choice import Machine
from dens_plugin.nn.so2 import rotated_edges


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Few edges at a time, so that there are several pieces; the same numbers each time."""
    monkeypatch.setattr(rotated_edges, "_CPU_EDGES", 4)
    torch.manual_seed(0)


@pytest.fixture
def in_plain_torch(monkeypatch):
    """Turn the loops off, for what is computed from then on."""
    from dens_plugin.nn.equiformer_v2 import attention, message
    from dens_plugin.nn.so2 import activation, rotation

    def turn_off():
        for module in (activation, attention, message, rotation):
            monkeypatch.setattr(module, "machine_for", lambda *_: Machine.PLAIN)

    return turn_off
