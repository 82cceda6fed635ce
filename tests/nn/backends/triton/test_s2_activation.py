from __future__ import annotations

import kernel_twins
import pytest
import torch
from kernel_samples import TOLERANCES, assert_twins, needs_triton, random

from dens_plugin.nn.backends.triton.s2_activation import s2_activation

DOUBLE = torch.float64


def matrices(points, coefficients, dtype=torch.float32):
    return random(points, coefficients, dtype=dtype), random(points, coefficients, seed=1, dtype=dtype) / points


def test_twin_is_the_formula_and_its_gradient():
    x, gates = random(3, 9, 4, dtype=DOUBLE).requires_grad_(), random(3, 4, dtype=DOUBLE).requires_grad_()
    to_grid, from_grid = matrices(20, 9, DOUBLE)
    grid = torch.einsum("gt,etc->egc", to_grid, x)
    expected = torch.einsum("gs,egc->esc", from_grid, grid * torch.sigmoid(grid))
    found = kernel_twins.s2_activation(x.flatten(1), to_grid, from_grid, has_gates=False)
    torch.testing.assert_close(found, expected)
    gated = kernel_twins.s2_activation(torch.cat([gates, x.flatten(1)], 1), to_grid, from_grid, has_gates=True)
    torch.testing.assert_close(gated[:, 1:], expected[:, 1:])
    torch.testing.assert_close(gated[:, 0], gates * torch.sigmoid(gates))


def test_wrong_shapes_are_refused():
    to_grid, from_grid = matrices(20, 9)
    with pytest.raises(ValueError, match="columns"):
        s2_activation(random(3, 8 * 4), to_grid, from_grid, has_gates=False)
    with pytest.raises(ValueError, match="same shape"):
        s2_activation(random(3, 9 * 4), to_grid, from_grid[:-1], has_gates=False)


def both(to_grid, from_grid, has_gates):
    """The kernel and its twin, of the columns behind the first two."""
    functions = s2_activation, kernel_twins.s2_activation
    return [lambda of, act=act: act(of[:, 2:], to_grid, from_grid, has_gates=has_gates) for act in functions]


@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("edges", "coefficients", "channels", "points"),
    [(5, 29, 20, 324), (3, 49, 16, 70), (2, 4, 3, 10), (1, 75, 5, 33), (0, 29, 16, 40)],
)
def test_triton_is_the_twin(edges, coefficients, channels, points, dtype):
    for has_gates in (True, False):
        convolved = random(edges, 2 + (coefficients + has_gates) * channels)
        assert_twins(*both(*matrices(points, coefficients), has_gates), [convolved], [], dtype)


@needs_triton
def test_triton_takes_columns():
    assert_twins(
        *(lambda x, of=of: of(x.t()) for of in both(*matrices(40, 9), False)), [random(74, 3)], [], torch.float32
    )


@needs_triton
def test_triton_keeps_nan_in_its_column():
    x = random(2, 9, 4)
    x[1, 5, 2] = torch.nan
    out = s2_activation(x.flatten(1), *matrices(40, 9), has_gates=False)
    assert out[1, :, 2].isnan().all()
    assert out.isnan().sum() == 9


@needs_triton
def test_triton_refuses_a_second_derivative():
    x = random(2, 36).requires_grad_()
    out = s2_activation(x, *matrices(40, 9), has_gates=False)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
