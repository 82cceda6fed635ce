"""Does the energy jump when two atoms pass the cutoff? No time step, however short, makes up for that."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

_STEP = 5e-4  # Å on either side of the cutoff
_REACH = 1.5  # Å, by which an atom is moved to the cutoff at most
_PAIRS = 3  # that are tried


class Jump(NamedTuple):
    """The largest change of the energy that a model has at its cutoff, among a few pairs of atoms.

    Attributes:
        first: index of an atom.
        second: index of the other, which was moved across.
        energy: eV, outside minus inside, less the work of the force on the way.
    """

    first: int
    second: int
    energy: float


def jump_at_cutoff(atoms: Atoms, cutoff: float) -> Jump | None:
    """Move atoms that are nearly at the cutoff of another across it.

    Args:
        atoms: with a calculator; they stay as they are.
        cutoff: of the calculator's model in Å.

    Returns:
        None if no two atoms are near that distance, as in a molecule that is smaller.
    """
    first, second, vectors, distances = neighbor_list("ijDd", atoms, cutoff + _REACH)
    near = np.flatnonzero((first < second) & (np.abs(distances - cutoff) < _REACH))
    chosen = near[np.abs(distances[near] - cutoff).argsort()[:_PAIRS]]
    jumps = [
        Jump(int(first[at]), int(second[at]), _jump(atoms, int(second[at]), vectors[at] / distances[at], gap))
        for at, gap in zip(chosen, cutoff - distances[chosen], strict=True)
    ]
    return max(jumps, key=lambda jump: abs(jump.energy), default=None)


def _jump(atoms: Atoms, moved: int, direction: np.ndarray, gap: float) -> float:
    """The jump of an atom that is moved along a direction (3,) until ``gap`` Å on."""
    energies, forces = [], []
    for shift in (gap - _STEP, gap + _STEP):
        copy = atoms.copy()
        copy.calc = atoms.calc
        copy.positions[moved] += shift * direction
        energies.append(copy.get_potential_energy())
        forces.append(copy.get_forces(apply_constraint=False)[moved])
    work = float(np.mean(forces, axis=0) @ direction) * 2 * _STEP
    return energies[1] - energies[0] + work
