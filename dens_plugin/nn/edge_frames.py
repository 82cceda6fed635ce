r"""Frames of edges: the edge is the second axis, and chance turns the other two about it.

The numbers are those of fairchem's EquiformerV2 (arXiv:2306.12059) and eSCN (arXiv:2302.03655), from the same draws of
the device's generator, without their questions to the device. A second direction must not be parallel to the edge n:
of a random unit vector v = (x, y, z) and its quarter turns (-y, x, z) and (x, -z, y), the one that overlaps least with
n is taken. As their products with v are z² and x², not both near 1, no edge is parallel to all three. What is left to
go wrong is an edge without a direction.
"""

from __future__ import annotations

import torch

SHORTEST = 1e-4  # Å; the difference of two positions in float32 has no direction below


def edge_frames(vectors: torch.Tensor) -> torch.Tensor:
    """Rotations to the frames of edges, without waiting for the device.

    Args:
        vectors: (E, 3) Å.

    Returns:
        (E, 3, 3) with the edge's direction in the second row, all three rows NaN for an edge without a direction (see
        `has_direction`). They have no gradient.
    """
    vectors = vectors.detach()
    direction = _unit(vectors).masked_fill(~has_direction(vectors)[:, None], torch.nan)
    third = _unit(_unit(torch.linalg.cross(direction, _least_parallel(direction))))  # twice, for fairchem's last digit
    second = _unit(torch.linalg.cross(direction, third))
    return torch.stack([third, direction, -second], dim=1)


def has_direction(vectors: torch.Tensor) -> torch.Tensor:
    """(E,) bool, whether edges (E, 3) in Å are finite and at least `SHORTEST` long."""
    length = vectors.square().sum(1).sqrt()
    return length.isfinite() & (length >= SHORTEST)


def _least_parallel(direction: torch.Tensor) -> torch.Tensor:
    """(E, 3) random vectors, or their quarter turns, that are not parallel to (E, 3)."""
    x, y, z = _unit(torch.rand_like(direction) - 0.5).unbind(1)
    candidates = torch.stack([torch.stack(turned, dim=1) for turned in ((x, y, z), (-y, x, z), (x, -z, y))])
    least = (candidates * direction).sum(2).abs().argmin(0)  # (E,), of equal ones the first, as fairchem
    return candidates.gather(0, least[None, :, None].expand(1, -1, 3))[0]


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.square().sum(1, keepdim=True).sqrt()
