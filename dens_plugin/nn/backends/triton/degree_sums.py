r"""Sums over the components of each degree, in a fixed order: gradients of weights that all of them have a copy of.

.. math:: y_{lx} = \sum_{i = l^2}^{(l + 1)^2 - 1} g_{ix}
"""

from __future__ import annotations

import math

import torch

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl

_BLOCK = 1024


def degree_sums(of_components: torch.Tensor, lowest: int = 0) -> torch.Tensor:
    """(..., lmax + 1 - m, C', C) of (..., (lmax + 1)^2 - m^2, C', C), where m is the lowest degree."""
    components, *size = of_components.shape[-3:]
    degrees, numbers = math.isqrt(components + lowest**2) - lowest, size[0] * size[1]
    of_components = of_components.contiguous()
    out = of_components.new_empty(*of_components.shape[:-3], degrees, *size)
    grid = (out.numel() // (degrees * numbers), degrees, -(-numbers // _BLOCK))
    launch(_kernel, grid, (of_components, out, numbers), degrees=degrees, lowest=lowest, block=_BLOCK)
    return out


@jit
def _kernel(of_components, out, numbers, degrees: constexpr, lowest: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    batch, degree = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = tl.program_id(2) * block + tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    components: constexpr = (degrees + lowest) * (degrees + lowest) - lowest * lowest
    first = (degree + lowest) * (degree + lowest) - lowest * lowest
    for i in range(first, first + 2 * (degree + lowest) + 1):
        at = (batch * components + i) * numbers + x
        total += tl.load(of_components + at, mask=x < numbers, other=0.0).to(tl.float32)
    tl.store(out + (batch * degrees + degree) * numbers + x, total.to(out.dtype.element_ty), mask=x < numbers)
