"""Whether lengths are in Å: how far the nearest atoms of molecules are apart, against bonds of their elements.

Of each atom the smallest distance over the sum of covalent radii (Cordero et al., Dalton Trans. 2832, 2008, as in ASE):

    r_i = min over j of d_ij / (R_i + R_j),

about 1 in whatever is bonded, and 1.89 where bohr are taken for Å. Noble gases are not bonded and do not count;
periodic structures are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ase.data import covalent_radii

_NOBLE = (2, 10, 18, 36, 54, 86)
_MANY = 500  # atoms, beyond which all distances are too many
_BOHR = (1.55, 2.4)  # where the ratio lies if lengths are in bohr; bonded molecules have 0.8 to 1.25


def stretch(numbers: np.ndarray, positions: np.ndarray, pbc: np.ndarray) -> float:
    """The median of the ratio over a molecule's atoms; NaN where it says nothing.

    Args:
        numbers: Atomic numbers, shape (N,).
        positions: Shape (N, 3).
        pbc: Whether periodic along each vector, shape (3,).
    """
    bonded = ~np.isin(numbers, _NOBLE)
    positions, radii = positions[bonded], covalent_radii[numbers[bonded]]
    if pbc.any() or not 1 < len(positions) <= _MANY:
        return np.nan
    distances = np.linalg.norm(positions[:, None] - positions, axis=2) / (radii[:, None] + radii)  # (N, N)
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)))


def middle_of(stretches: Iterable[float]) -> float:
    """The median over some molecules, of each its `stretch`; NaN where none says anything."""
    known = [value for value in stretches if not np.isnan(value)]
    return float(np.median(known)) if known else np.nan


def in_bohr(middle: float) -> str | None:
    """What to say of molecules whose median stretch looks like lengths in bohr; None if it does not."""
    if not _BOHR[0] < middle < _BOHR[1]:
        return None
    return (
        f"the nearest atoms are {middle:.2f} times as far apart as bonds of their elements are long: are positions in "
        "bohr? They are taken for Å, whatever --units says of energies: multiply them by 0.529177 (ase.units.Bohr), or "
        "give an npz file its `r_unit`"
    )
