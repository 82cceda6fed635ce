"""Small graphs, and a comparison of two ways to compute."""

from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.backends.cpu.team import loops_reason
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges

needs_loops = pytest.mark.skipif(loops_reason() is not None, reason=str(loops_reason()))
LAYOUTS = [Layout(2, 1), Layout(6, 2), Layout(3, 0), Layout(4, 3)]
on_all_layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.lmax}, {layout.mmax}")
TARGETS = {
    "equal degrees": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "unequal degrees": [0, 1, 1, 1, 1, 3],
    "no edges": [],
}
on_all_graphs = pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)


def graph(targets, layout, num_atoms=4):
    edge_index = torch.stack([torch.randint(num_atoms, (len(targets),)), torch.tensor(targets, dtype=torch.long)])
    packed = torch.randn(len(targets), layout.packed_starts[-1])
    return RotatedEdges.build(edge_index, packed, layout, num_atoms=num_atoms)


def require_close(found, expected, tolerance=2e-6):
    """Equal to rounding, relative to the largest number of each tensor."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max() if b.numel() else a.numel() == 0
