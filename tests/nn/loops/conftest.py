from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.so2 import edges


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Few edges at a time, so that there are several pieces; the same numbers each time."""
    monkeypatch.setattr(edges, "_CPU_EDGES", 4)
    torch.manual_seed(0)


@pytest.fixture
def in_plain_torch(monkeypatch):
    """Turn the loops off, for what is computed from then on."""
    from dens_plugin.nn.so2 import activation, attention, message, rotation

    def turn_off():
        for module in (activation, attention, message, rotation):
            monkeypatch.setattr(module, "uses_loops", lambda *_: False)

    return turn_off
