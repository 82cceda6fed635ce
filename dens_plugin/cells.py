"""Cells: their volume, which of them are flat, and what ASE chooses for vectors that are zero."""

from __future__ import annotations

import numpy as np
import torch
from ase.geometry.cell import complete_cell

LEAST_VOLUME = 1e-3  # Å³; no crystal has less, and a search for neighbours in less would take all memory


def volume(cell: np.ndarray) -> float:
    """The volume in Å³ of a cell (3, 3), whose vectors are rows; written out, as that is 20 times faster."""
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(cell, dtype=float).tolist()
    return abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))


def whole_cell(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """(3, 3) a cell, of which zero vectors along directions that are not periodic are chosen as ASE does.

    A zero vector of a periodic direction stays, so that the cell has no volume.

    Args:
        cell: (3, 3) in Å.
        periodic: (3,).
    """
    missing = ~np.any(cell, axis=1)
    is_refused = (missing & np.asarray(periodic, dtype=bool)).any()
    return complete_cell(cell) if missing.any() and not is_refused else np.asarray(cell)


def is_flat(cell: np.ndarray, periodic: np.ndarray) -> bool:
    """Whether a structure is periodic along some vector and its cell, completed by `whole_cell`, has no volume."""
    return bool(np.any(periodic)) and not volume(whole_cell(cell, periodic)) >= LEAST_VOLUME  # NaN is flat as well


def complete_cells(cell: torch.Tensor, periodic: torch.Tensor) -> torch.Tensor:
    """(B, 3, 3) cells, each completed by `whole_cell`.

    Args:
        cell: (B, 3, 3) in Å.
        periodic: (B, 3).
    """
    missing = ((cell == 0).all(dim=-1) & ~periodic).any(dim=-1)
    if not missing.any():
        return cell
    complete = cell.clone()
    for index in missing.nonzero().view(-1).tolist():
        vectors, flags = (values[index].double().cpu().numpy() for values in (cell, periodic))
        complete[index] = torch.as_tensor(whole_cell(vectors, flags)).to(cell)
    return complete


def flat_cells(cell: torch.Tensor, periodic: torch.Tensor) -> torch.Tensor:
    """(B,) bool, which structures have `is_flat` cells.

    Args:
        cell: (B, 3, 3) in Å, completed.
        periodic: (B, 3).
    """
    return ~(torch.linalg.det(cell.double()).abs() >= LEAST_VOLUME) & periodic.any(dim=1)
