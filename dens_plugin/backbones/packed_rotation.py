"""Wigner matrices of edges, packed: the rows of |m| <= mmax alone, in the order of `Layout`."""

from __future__ import annotations

import torch
from e3nn import o3
from fairchem.core.models.equiformer_v2.wigner import wigner_D

from dens_plugin.nn.so2.layout import Layout


def rotations(frames: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(E, S, (lmax + 1)^2) rows of the Wigner matrices, of the host's angles, in the precision of the frames.

    Args:
        frames: (E, 3, 3) rotations to the frames of the edges.
        layout: of the rows.
    """
    with torch.autocast(frames.device.type, enabled=False):
        alpha, beta = o3.xyz_to_angles(frames[:, :, 1])
        rest = o3.angles_to_matrix(alpha, beta, torch.zeros_like(alpha)).transpose(1, 2) @ frames
        gamma = torch.atan2(rest[:, 0, 2], rest[:, 0, 0])
        out = frames.new_zeros(len(frames), len(layout), (layout.lmax + 1) ** 2)
        for degree in range(layout.lmax + 1):
            rows = [row for row, (of_row, _) in enumerate(layout.coefficients) if of_row == degree]
            kept = [degree + layout.coefficients[row][1] for row in rows]
            out[:, rows, degree * degree : (degree + 1) ** 2] = wigner_D(degree, alpha, beta, gamma)[:, kept]
    return out
