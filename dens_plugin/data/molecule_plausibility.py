"""Whether numbers are in the units that they are taken for: the size of forces, and energies against their work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dens_plugin.data.findings import LARGE_FORCES, SMALL_FORCES
from dens_plugin.data.molecule_files import Frames
from dens_plugin.data.structures import Structure

_COMPARED = 200  # frames that are looked at; the time grows with the square
_CLOSEST = 100  # pairs of them
_LEAST = 30  # frames, and pairs: fewer tell nothing
_NEAR = 0.3  # Å rms: beyond it the mean of two forces says nothing of what lies between
_CORRELATION = 0.8
_SLOPE = (0.6, 1.6)  # noise gives 1.0 to 1.15 on real data; forces in hartree/bohr taken for hartree/Å give 1.9
_KCAL_RATIO = (15, 30)  # eV over kcal/mol is 23


def require_plausible_units(frames: Frames, indices: Sequence[int], *, sure: bool = False) -> str:
    """Check the units of forces by their size, and those of energies by the work of the forces.

    Thermal forces have an rms of 0.3 to 3 eV/Å a component; kcal/mol/Å are 23 times the number, hartree/bohr a 51st.
    Periodic frames and very few ones are checked by size only.

    Args:
        frames: The file.
        indices: Frames of it to look at.
        sure: The user named the units, so that forces may have any size, as those of relaxed structures do.

    Returns:
        What was found, for a person.

    Raises:
        ValueError: If the size of the forces cannot be, or energies and forces contradict each other.
    """
    places = np.linspace(0, len(indices) - 1, min(len(indices), _COMPARED)).astype(int)
    picked = [frames.read(int(indices[at])) for at in places]
    rms = float(np.sqrt(np.mean(np.concatenate([structure.forces for structure in picked]) ** 2)))
    head = f"{frames.path} ({frames.units.name})"
    if not (sure or SMALL_FORCES < rms < LARGE_FORCES):
        raise ValueError(
            f"{head}: forces have an rms of {rms:.3g} eV/Å a component, too {'large' if rms > 1 else 'small'} for "
            f"these units ({SMALL_FORCES:g} to {LARGE_FORCES:g} are taken): give --units."
        )
    slope = energy_force_slope(picked)
    if slope is None:
        return f"{head}: forces rms {rms:.3f} eV/Å; no frames alike enough to compare energies with them"
    if not _SLOPE[0] < slope < _SLOPE[1]:
        raise ValueError(
            f"{head}: between close frames energies change by {slope:.3g} times the work of the forces: "
            f"{_explain(slope)}."
        )
    return f"{head}: forces rms {rms:.3f} eV/Å, energies change by {slope:.2f} times their work"


def energy_force_slope(structures: Sequence[Structure]) -> float | None:
    """By how much energies change between close frames, per work of the forces; near 1 where the units agree.

    Frames are turned onto each other; the work is then minus the mean of both forces times the displacement.

    Args:
        structures: Frames with labels.

    Returns:
        The slope; None where no frames are alike enough to tell.
    """
    alike = [s for s in structures if not s.pbc.any() and np.array_equal(s.numbers, structures[0].numbers)]
    if len(alike) < _LEAST or len(alike[0].numbers) < 2:
        return None
    rms, work, change = _pairs(alike)
    closest = np.argsort(rms)[:_CLOSEST]
    closest = closest[rms[closest] < _NEAR]
    work, change = work[closest], change[closest]
    if len(closest) < _LEAST or not work.std() or not change.std():
        return None
    if abs(np.corrcoef(work, change)[0, 1]) < _CORRELATION:
        return None
    return float((change @ change) / (work @ change))


def _pairs(structures: Sequence[Structure]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For all pairs: rms displacement in Å after superposition (Kabsch), work and change of energy in eV, each (P,)."""
    positions = np.array([s.positions - s.positions.mean(axis=0) for s in structures])  # (B, N, 3)
    forces = np.array([s.forces for s in structures])
    energies = np.array([s.energy for s in structures])
    one, other = np.triu_indices(len(structures), 1)
    u, _, vt = np.linalg.svd(positions[one].transpose(0, 2, 1) @ positions[other])
    u[:, :, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]  # no reflections
    turn = (u @ vt).transpose(0, 2, 1)  # (P, 3, 3)
    displacement = positions[other] @ turn - positions[one]
    work = -0.5 * ((forces[one] + forces[other] @ turn) * displacement).sum(axis=(1, 2))
    return np.sqrt((displacement**2).sum(axis=2).mean(axis=1)), work, energies[other] - energies[one]


def _explain(slope: float) -> str:
    if slope < 0:
        return "the forces are the gradient, which has the other sign"
    if any(_KCAL_RATIO[0] < ratio < _KCAL_RATIO[1] for ratio in (slope, 1 / slope)):
        return "one of them is in kcal/mol and the other in eV"
    return "they are not in the same units, or not of the same frames"
