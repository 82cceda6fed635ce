from __future__ import annotations

import pytest
import torch
from kernel_samples import TOLERANCES, assert_twins, needs_triton, random

from dens_plugin.nn.backends.triton.s2_activation import s2_activation, s2_activation_plain, s2_activation_triton

DOUBLE = torch.float64


def matrices(points, coefficients, dtype=torch.float32):
    return random(points, coefficients, dtype=dtype), random(points, coefficients, seed=1, dtype=dtype) / points


def test_plain_is_the_formula_and_its_gradient():
    x, gates = random(3, 9, 4, dtype=DOUBLE).requires_grad_(), random(3, 4, dtype=DOUBLE).requires_grad_()
    to_grid, from_grid = matrices(20, 9, DOUBLE)
    grid = torch.einsum("gt,etc->egc", to_grid, x)
    expected = torch.einsum("gs,egc->esc", from_grid, grid * torch.sigmoid(grid))
    torch.testing.assert_close(s2_activation(x, None, to_grid, from_grid), expected)
    gated = s2_activation(x, gates, to_grid, from_grid)
    torch.testing.assert_close(gated[:, 1:], expected[:, 1:])
    torch.testing.assert_close(gated[:, 0], gates * torch.sigmoid(gates))
    assert torch.autograd.gradcheck(s2_activation_plain, (x, gates, to_grid, from_grid))


def test_wrong_shapes_are_refused():
    to_grid, from_grid = matrices(20, 9)
    with pytest.raises(ValueError, match="columns"):
        s2_activation(random(3, 8, 4), None, to_grid, from_grid)
    with pytest.raises(ValueError, match="gates"):
        s2_activation(random(3, 9, 4), random(3, 5), to_grid, from_grid)


@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("edges", "coefficients", "channels", "points"),
    [(5, 29, 20, 324), (3, 49, 16, 70), (2, 4, 3, 10), (1, 75, 5, 33), (0, 29, 16, 40)],
)
def test_triton_is_the_twin(edges, coefficients, channels, points, dtype):
    others = matrices(points, coefficients)
    x, gates = random(edges, coefficients, channels), random(edges, channels)
    assert_twins(s2_activation_triton, s2_activation_plain, [x, gates], others, dtype)
    assert_twins(s2_activation_triton, s2_activation_plain, [x], [None, *others], dtype)


@needs_triton
def test_triton_takes_views():
    others = matrices(40, 9)
    x = random(9, 3, 8)
    assert_twins(
        lambda x: s2_activation_triton(x.transpose(0, 1), None, *others),
        lambda x: s2_activation_plain(x.transpose(0, 1), None, *others),
        [x],
        [],
        torch.float32,
    )


@needs_triton
def test_triton_keeps_nan_in_its_column():
    x = random(2, 9, 4)
    x[1, 5, 2] = torch.nan
    out = s2_activation_triton(x, None, *matrices(40, 9))
    assert out[1, :, 2].isnan().all()
    assert out.isnan().sum() == 9


@needs_triton
def test_triton_refuses_a_second_derivative():
    x = random(2, 9, 4).requires_grad_()
    (grad,) = torch.autograd.grad(s2_activation_triton(x, None, *matrices(40, 9)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
