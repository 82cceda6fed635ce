from __future__ import annotations

import pytest
import torch
from loop_samples import needs_loops

from dens_plugin.nn.backends.cpu.silu import silu, silu_derivative
from dens_plugin.nn.backends.cpu.team import ARGUMENTS, Loop, floats, rows_of_thread, table_of

pytestmark = needs_loops


def _write_all(pointer):
    table = table_of(pointer)
    x, y = floats(table[ARGUMENTS], (table[0],)), floats(table[ARGUMENTS + 1], (table[0],))
    slope = floats(table[ARGUMENTS + 2], (table[0],))
    start, stop = rows_of_thread(table)
    for row in range(start, stop):
        y[row] = silu(x[row])
        slope[row] = silu_derivative(x[row])


def both(x):
    y, slope = torch.empty_like(x), torch.empty_like(x)
    Loop(_write_all).run(len(x), x, y, slope)
    return y, slope


def test_rounding():
    x = torch.linspace(-100, 100, 100_001)
    exact = x.double().requires_grad_()
    expected = torch.nn.functional.silu(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    found = both(x)
    assert torch.allclose(found[0].double(), expected, rtol=5e-6, atol=2e-17)
    assert torch.allclose(found[1].double(), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("x", [0.0, 1e30, -1e30, 3e38, -3e38])
def test_limits(x):
    y, slope = both(torch.tensor([x]))
    assert y.item() == pytest.approx(max(x, 0), rel=1e-6, abs=2e-17)
    assert slope.item() == pytest.approx(0.5 if x == 0 else float(x > 0), abs=2e-17)


def test_nan_stays():
    assert all(part.isnan().all() for part in both(torch.tensor([float("nan")])))
