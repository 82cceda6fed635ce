from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from e3nn import o3
from fairchem.core.models.equiformer_v2.wigner import wigner_D
from no_waiting import copies_from_host

from dens_plugin.backbones import packed_rotation
from dens_plugin.backbones.packed_rotation import rotations
from dens_plugin.nn.edge_frames import edge_frames
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges

LAYOUTS = [Layout(6, 2), Layout(3, 3), Layout(2, 0), Layout(0, 0)]


def hosts(frames, layout):
    """Whole matrices of fairchem's, and of those the rows of the layout."""
    alpha, beta = o3.xyz_to_angles(frames[:, :, 1])
    rest = o3.angles_to_matrix(alpha, beta, torch.zeros_like(alpha)).mT @ frames
    gamma = torch.atan2(rest[:, 0, 2], rest[:, 0, 0])
    whole = frames.new_zeros(len(frames), *(2 * [(layout.lmax + 1) ** 2]))
    for degree in range(layout.lmax + 1):
        block = slice(degree * degree, (degree + 1) ** 2)
        whole[:, block, block] = wigner_D(degree, alpha, beta, gamma)
    return whole[:, [degree * degree + degree + m for degree, m in layout.coefficients]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 4e-6), (torch.float64, 1e-14)])
def test_are_fairchems_rows(layout, dtype, rounding):
    frames = edge_frames(torch.randn(100, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)))
    found = rotations(frames, layout)
    assert found.dtype == dtype
    edge_index = torch.zeros(2, len(frames), dtype=torch.long)
    edges = RotatedEdges.build(edge_index, found, layout, num_atoms=1)
    assert (edges.rotation - hosts(frames, layout)).abs().max() < rounding


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_at_once_are_those_of_each_degree(layout):
    """A GPU's way on a CPU."""
    frames = edge_frames(torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    constants = packed_rotation._all_degrees(layout, frames.device, frames.dtype)
    found = packed_rotation._at_once(packed_rotation._angles(frames), constants)
    assert torch.allclose(found, rotations(frames, layout), rtol=0, atol=1e-13)


def test_no_frame_is_no_number():
    frames = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan)])
    good, bad = rotations(frames, Layout(2, 1))
    assert good.isfinite().all()
    assert bad.isnan().any()


def test_refuses_degrees_that_fairchem_lacks():
    with pytest.raises(ValueError, match="lmax must be at most 11, got 12"):
        rotations(torch.eye(3)[None], Layout(12, 2))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_from_vectors_to_rotations_nothing_waits(layout, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know the device
    vectors = torch.empty(5, 3, device="meta")
    assert rotations(edge_frames(vectors), layout).shape == (5, layout.packed_starts[-1])
    assert not copies_from_host(lambda: rotations(edge_frames(vectors), layout))
    assert not copies_from_host(lambda: layout.constants_for(vectors).scale.sqrt())


WAITS = {
    "a number": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).any()),
    "a list of numbers": lambda x: x[0].tolist(),
    "a mask": lambda x: x[x > 0],
    "a new tensor": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "a tensor from the CPU": lambda x: torch.arange(2).to(x.device),
    "a list of indices": lambda x: x[:, [0, 2]],
    "lengths that differ": lambda x: x.repeat_interleave(torch.ones(5, dtype=torch.long, device=x.device), dim=0),
    "fairchem's frames": lambda x: hosts(x[:, None].expand(-1, 3, -1), Layout(1, 1)),
}


@pytest.mark.parametrize("function", WAITS.values(), ids=WAITS)
def test_what_waits_is_found(function):
    vectors = torch.empty(5, 3, device="meta")
    with pytest.raises((AssertionError, RuntimeError)):
        assert not copies_from_host(lambda: function(vectors))
