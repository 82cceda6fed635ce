"""Random adsorbates on random fcc slabs, with ASE's effective medium theory (EMT) in the place of DFT.

EMT knows a few fcc metals and, crudely, H, C, N and O. Its energies mean nothing chemically, but they are smooth and
fast, and the systems are built like OC20's: a slab with fixed bottom layers, a free surface, an adsorbate.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, covalent_radii, reference_states
from ase.optimize import BFGS

METALS = ("Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al")
ADSORBATES = ("H", "C", "N", "O", "CO", "OH", "NO", "CH", "NH")

_FIXED, _FREE, _ADSORBATE = 0, 1, 2  # OC20's tags
_FORCE_LIMIT = 25.0  # eV/Å; beyond it EMT has left the range where it is defined
_HEIGHT_LIMIT = 5.0  # Å above the slab; an adsorbate beyond it has left
_VACUUM = 8.0  # Å on either side of the slab
_FMAX = 0.05  # eV/Å
_MAX_STEP = 0.06  # Å per optimiser step; small, for many frames a relaxation
_MAX_TRIES = 50


def draw_relaxation(rng: np.random.Generator, *, max_steps: int) -> list[Atoms]:
    """Draw systems and relax them until one stays physical.

    Args:
        rng: Source of every random choice.
        max_steps: Most optimiser steps.

    Returns:
        The frames of one relaxation in order, with energy (eV) and forces (eV/Å).

    Raises:
        RuntimeError: If no draw of many stays physical.
    """
    for _ in range(_MAX_TRIES):
        frames = _relax(_draw_system(rng), max_steps=max_steps)
        if all(_is_physical(frame) for frame in frames):
            return frames
    raise RuntimeError(f"None of {_MAX_TRIES} random systems had forces below {_FORCE_LIMIT} eV/Å.")


def _draw_system(rng: np.random.Generator) -> Atoms:
    """A rattled slab with an adsorbate on it, 18 to 38 atoms."""
    slab = _draw_slab(rng)
    adsorbate = _draw_adsorbate(rng, slab)
    system = slab + adsorbate
    system.set_constraint(FixAtoms(mask=system.get_tags() == _FIXED))
    return _rattled(system, rng)


def _draw_slab(rng: np.random.Generator) -> Atoms:
    metal, other = rng.choice(METALS, size=2, replace=False)
    size = ((2, 2, 5), (3, 2, 3), (3, 2, 4), (3, 3, 3), (3, 3, 4))[rng.integers(5)]
    slab = (fcc111, fcc100)[rng.integers(2)](metal, size=size, vacuum=_VACUUM)
    slab.pbc = True
    slab.info = {}  # ASE's adsorption sites, which the release's files do not have
    layer = slab.get_tags()  # ASE counts the layers from the top, 1 is the surface
    if rng.random() < 0.5:
        slab = _surface_alloy(slab, layer, other, rng)
    slab.set_tags(np.where(layer > 2, _FIXED, _FREE))
    return slab


def _surface_alloy(slab: Atoms, layer: np.ndarray, other: str, rng: np.random.Generator) -> Atoms:
    """Replace some surface atoms by another metal and give the cell the size between the two."""
    alloy = slab.copy()
    replaced = (layer == 1) & (rng.random(len(slab)) < 0.5)
    alloy.numbers[replaced] = atomic_numbers[other]
    constants = [reference_states[number]["a"] for number in alloy.numbers]
    scale = np.mean(constants) / reference_states[slab.numbers[0]]["a"]
    alloy.set_cell(alloy.cell * scale, scale_atoms=True)
    return alloy


def _draw_adsorbate(rng: np.random.Generator, slab: Atoms) -> Atoms:
    """A randomly turned adsorbate above a random point of the surface, within reach of the nearest atom."""
    name = rng.choice(ADSORBATES)
    adsorbate = molecule(name) if len(name) > 1 else Atoms(name)
    adsorbate.rotate(rng.uniform(0, 180), "x")
    adsorbate.rotate(rng.uniform(0, 360), "z")
    place = rng.random(2) @ slab.cell.array[:2]  # (3,)
    height = slab.positions[:, 2].max() + rng.uniform(1.0, 2.0) - adsorbate.positions[:, 2].min()
    adsorbate.translate([place[0], place[1], height])
    adsorbate.set_tags(_ADSORBATE)
    return adsorbate


def _rattled(system: Atoms, rng: np.random.Generator) -> Atoms:
    rattled = system.copy()
    free = system.get_tags() != _FIXED
    rattled.positions[free] += rng.normal(scale=rng.uniform(0.05, 0.15), size=(free.sum(), 3))
    return rattled


def _relax(system: Atoms, *, max_steps: int) -> list[Atoms]:
    """The frames of a relaxation; ends early at the first that is not physical."""
    if _closest(system) < 0.6:
        return [system]
    moving = system.copy()
    moving.calc = EMT()
    frames = []
    for _ in BFGS(moving, maxstep=_MAX_STEP, logfile=None).irun(fmax=_FMAX, steps=max_steps):
        frames.append(_snapshot(moving))
        if not _is_physical(frames[-1]):
            break
    return frames


def _snapshot(atoms: Atoms) -> Atoms:
    frame = atoms.copy()
    frame.calc = SinglePointCalculator(
        frame,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(apply_constraint=False),  # OC20 keeps the forces of fixed atoms as well
    )
    return frame


def _closest(atoms: Atoms) -> float:
    """Smallest distance between two atoms relative to the sum of their covalent radii."""
    distances = atoms.get_all_distances(mic=True)
    radii = covalent_radii[atoms.numbers]
    np.fill_diagonal(distances, np.inf)
    return float((distances / (radii[:, None] + radii[None, :])).min())


def _is_physical(frame: Atoms) -> bool:
    if frame.calc is None:
        return False
    energy, forces = frame.calc.results["energy"], frame.calc.results["forces"]
    height = frame.positions[:, 2] - frame.positions[frame.get_tags() == _FREE, 2].max()
    return bool(
        np.isfinite(energy)
        and np.isfinite(forces).all()
        and np.linalg.norm(forces, axis=1).max() <= _FORCE_LIMIT
        and height.max() <= _HEIGHT_LIMIT
    )
