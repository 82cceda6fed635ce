"""fairchem's grids on the sphere as `dens_plugin.nn.so2` takes them."""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.layout import Layout

_CAST = WeakTensorKeyDictionary()
_KNOWN = WeakTensorKeyDictionary()  # a model's blocks share their grids, and ask for them in every step


def grid_matrix(matrix: torch.Tensor, layout: Layout) -> GridMatrix:
    """The same matrix for coefficients in the order of an edge's features, made once.

    Args:
        matrix: (B, A, S) of fairchem, for coefficients sorted by degree; a constant, though it may be a buffer.
        layout: of the S coefficients.
    """
    known: GridMatrix | None = _KNOWN.get(matrix)
    if known is None:
        order = layout.constants_for(matrix).positions_by_degree
        with torch.inference_mode(False):  # whose tensors no later training step could use
            known = GridMatrix.of(matrix.detach()[:, :, order], [m for _, m in layout.coefficients])
        _KNOWN[matrix] = known
    return known


def flat_grid(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(G, S) of fairchem's (B, A, S) in another precision, made once."""
    if matrix.dtype == dtype:
        return matrix.flatten(0, 1)
    known: dict[torch.dtype, torch.Tensor] = _CAST.setdefault(matrix, {})
    if dtype not in known:
        with torch.inference_mode(False):  # whose tensors no later training step could use
            known[dtype] = matrix.detach().flatten(0, 1).to(dtype)
    return known[dtype]
