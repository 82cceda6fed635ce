"""Parts of a batch whose values on a grid of the sphere stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def grid_parts(features: torch.Tensor, num_points: int, max_bytes: int) -> Iterator[slice]:
    """Slices of the first axis, which together are all of it; a GPU takes it at once.

    Args:
        features: (E or N, S, C).
        num_points: G of the grid.
        max_bytes: of the values (e, G, C) of a part, unless one row alone takes more.
    """
    if features.is_cuda:
        yield slice(None)
        return
    size = max(1, max_bytes // (num_points * features.shape[2] * features.element_size()))
    for start in range(0, len(features), size):
        yield slice(start, start + size)
