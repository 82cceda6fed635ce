r"""Spherical harmonics as polynomials of a direction's coordinates: one matrix product instead of some hundred steps.

.. math:: Y_{lm}(n) = \sum_{a + b + c = l} M_{abc, lm} \, n_x^a n_y^b n_z^c

e3nn's, "component" normalised. Up to degree 8 they are as near to float64's as e3nn's own in float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from e3nn import o3
from torch.nn import functional


class _Polynomials(NamedTuple):
    """K products of powers.

    Attributes:
        exponents: (lmax + 1,) from 0 on.
        powers: (3, K) of x, y and z.
        matrix: (K, (lmax + 1)^2).
    """

    exponents: torch.Tensor
    powers: torch.Tensor
    matrix: torch.Tensor


def spherical_harmonics(vectors: torch.Tensor, lmax: int) -> torch.Tensor:
    """(N, (lmax + 1)^2) of the directions of vectors (N, 3); of no direction they are 1 for degree 0, and 0."""
    exponents, powers, matrix = _polynomials(lmax, vectors.device, vectors.dtype)
    table = functional.normalize(vectors, dim=1)[:, :, None] ** exponents  # (N, 3, lmax + 1)
    x, y, z = (of_axis.index_select(1, power) for of_axis, power in zip(table.unbind(1), powers, strict=True))
    return (x * y * z) @ matrix


@functools.cache
def _polynomials(lmax: int, device: torch.device, dtype: torch.dtype) -> _Polynomials:
    """Made once, as a copy to a GPU waits for it."""
    powers, blocks = [], []
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():  # whose tensors no later training step could use
        for degree in range(lmax + 1):
            of_degree = [(a, b, degree - a - b) for a in range(degree + 1) for b in range(degree + 1 - a)]
            points = torch.randn(8 * len(of_degree), 3, generator=generator, dtype=torch.float64, device="cpu")
            points = functional.normalize(points, dim=1)
            products = (points[:, None] ** torch.tensor(of_degree, device="cpu")).prod(dim=2)
            values = o3.spherical_harmonics(degree, points, normalize=True, normalization="component")
            powers += of_degree
            blocks.append(torch.linalg.lstsq(products, values).solution)
        matrix = torch.block_diag(*blocks).to(device=device, dtype=dtype)
        exponents = torch.arange(lmax + 1, device=device, dtype=dtype)
        return _Polynomials(exponents, torch.tensor(powers, device=device).t().contiguous(), matrix)
