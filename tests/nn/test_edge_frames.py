from __future__ import annotations

import pytest
import torch
from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat

from dens_plugin.nn.edge_frames import SHORTEST, edge_frames, has_direction

NO_DIRECTION = [[0.0] * 3, [1e-25] * 3, [SHORTEST / 2, 0, 0], [torch.nan, 1, 0], [torch.inf, 0, 0], [1e20, 1e20, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5000])
def test_are_fairchems_bit_for_bit(dtype, count):
    vectors = 3 * torch.randn(count, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    expected, draw = init_edge_rot_mat(vectors), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(edge_frames(vectors), expected)
    assert torch.equal(torch.rand(1), draw)


def test_are_rotations_that_turn_edges_to_the_second_axis():
    vectors = torch.cat([torch.randn(50, 3), torch.eye(3), -torch.eye(3)]).double()
    frames = edge_frames(vectors)
    assert torch.allclose(frames @ frames.mT, torch.eye(3).double().expand_as(frames), atol=1e-12)
    assert torch.allclose(torch.linalg.det(frames), torch.ones(len(vectors)).double())
    turned = (frames @ vectors[:, :, None])[:, :, 0]
    assert torch.allclose(turned, torch.tensor([0, 1, 0]) * vectors.norm(dim=1, keepdim=True), atol=1e-12)


@pytest.mark.parametrize("component", [0, 1, 2])
def test_a_second_direction_is_never_parallel(monkeypatch, component):
    """Draws along the edge itself, of which fairchem relies on two quarter turns."""
    vectors = torch.eye(3)[component : component + 1]
    monkeypatch.setattr(torch, "rand_like", lambda like: like + 0.5)
    assert torch.allclose(torch.linalg.det(edge_frames(vectors)), torch.ones(1))


def test_no_direction_is_no_number():
    """And leaves the other edges alone."""
    good = torch.tensor([[1.0, 2.0, 3.0]])
    frames = edge_frames(torch.cat([torch.tensor(NO_DIRECTION), good]))
    assert frames[:-1].isnan().all()
    assert frames[-1].isfinite().all()


def test_has_direction():
    assert not has_direction(torch.tensor(NO_DIRECTION)).any()
    assert has_direction(torch.tensor([[0, 2 * SHORTEST, 0], [1e3, 0, 0]])).all()


def test_no_edges_draw_nothing():
    state = torch.get_rng_state()
    assert edge_frames(torch.zeros(0, 3)).shape == (0, 3, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_have_no_gradient():
    assert not edge_frames(torch.randn(2, 3, requires_grad=True)).requires_grad
