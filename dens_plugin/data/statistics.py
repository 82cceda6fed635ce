"""Numbers of a data set that a person wants to see before a long run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from dens_plugin.cells import volume
from dens_plugin.data.bonds import middle_of, stretch
from dens_plugin.data.scales import divisor, is_rounding
from dens_plugin.data.structures import Structure

_ELEMENTS = len(chemical_symbols)


class Spread(NamedTuple):
    """How one number is distributed over the structures; NaN where there are none."""

    mean: float
    std: float
    min: float
    median: float
    max: float


class ForceSize(NamedTuple):
    """Size of the forces on some atoms in eV/Å: root mean square of a component, largest norm; NaN without atoms."""

    rms: float
    max: float


class LinearFit(NamedTuple):
    """Least-squares fit of the energy by one number per element.

    Attributes:
        coefficients: In eV per atom, by element.
        residual: Root mean square of what is left, in eV.
        rms: Root mean square of the energy itself, in eV.
    """

    coefficients: dict[str, float]
    residual: float
    rms: float


class Statistics(NamedTuple):
    """Numbers over all structures that were looked at.

    Attributes:
        systems: Number of different ``sid``; 0 if the data set gives none.
        atoms: Atoms per structure.
        elements: Number of atoms by element.
        tags: Number of atoms by tag.
        fixed_share: Share of fixed atoms among all.
        pbc: Number of structures by periodicity, e.g. ``{"TTF": 3}``.
        volume: Of the cells, in Å^3.
        energy: In eV, over the finite labels.
        free_forces: On atoms that move.
        fixed_forces: On atoms that do not.
        fit: None without energies.
        stretch: How long bonds are, see :mod:`dens_plugin.data.bonds`; NaN without molecules.
    """

    systems: int
    atoms: Spread
    elements: dict[str, int]
    tags: dict[int, int]
    fixed_share: float
    pbc: dict[str, int]
    volume: Spread
    energy: Spread
    free_forces: ForceSize
    fixed_forces: ForceSize
    fit: LinearFit | None
    stretch: float

    @property
    def has_one_energy(self) -> bool:
        """Whether all energies are the same, but for rounding."""
        return is_rounding(self.energy.std, size=max(abs(self.energy.min), abs(self.energy.max)))

    @property
    def energy_scale(self) -> float:
        """What to divide energies by: their deviation, 1 where there is none, in eV."""
        return 1.0 if self.has_one_energy else self.energy.std

    @property
    def forces_scale(self) -> float:
        """What to divide forces by: the rms of a component, 1 where all are zero, in eV/Å."""
        return divisor(self.free_forces.rms, size=1.0)


class Summary(NamedTuple):
    """What the statistics need of one structure; small enough to keep one for each."""

    composition: np.ndarray  # (119,)
    tags: Counter
    n_fixed: int
    pbc: str
    volume: float
    energy: float  # NaN if missing
    free: tuple[int, float, float]  # number of atoms, sum of squared components, largest norm
    fixed: tuple[int, float, float]
    sid: str | None
    stretch: float


def summarize(structure: Structure) -> Summary:
    """Reduce a structure to what :func:`collect` needs."""
    return Summary(
        composition=np.bincount(structure.numbers, minlength=_ELEMENTS).astype(np.uint16),
        tags=Counter(structure.tags.tolist()),
        n_fixed=int(structure.fixed.sum()),
        pbc="".join("T" if periodic else "F" for periodic in structure.pbc),
        volume=volume(structure.cell),
        energy=np.nan if structure.energy is None else structure.energy,
        free=_force_sums(structure, ~structure.fixed),
        fixed=_force_sums(structure, structure.fixed),
        sid=None if structure.sid is None else str(structure.sid),
        stretch=stretch(structure.numbers, structure.positions, structure.pbc),
    )


def collect(summaries: Sequence[Summary]) -> Statistics:
    """Statistics of a data set from the summaries of its structures."""
    compositions = np.array([summary.composition for summary in summaries], dtype=float).reshape(
        -1, _ELEMENTS
    )  # (B, 119)
    energies = np.array([summary.energy for summary in summaries])  # (B,)
    atoms = compositions.sum(axis=1)
    return Statistics(
        systems=len({summary.sid for summary in summaries if summary.sid is not None}),
        atoms=_spread(atoms),
        elements={element: round(count) for element, count in _by_element(compositions.sum(axis=0)).items()},
        tags=dict(sorted(sum((summary.tags for summary in summaries), Counter()).items())),
        fixed_share=sum(summary.n_fixed for summary in summaries) / max(1, atoms.sum()),
        pbc=dict(Counter(summary.pbc for summary in summaries)),
        volume=_spread(np.array([summary.volume for summary in summaries])),
        energy=_spread(energies),
        free_forces=_force_size([summary.free for summary in summaries]),
        fixed_forces=_force_size([summary.fixed for summary in summaries]),
        fit=_fit(compositions, energies),
        stretch=middle_of(summary.stretch for summary in summaries),
    )


def _force_sums(structure: Structure, mask: np.ndarray) -> tuple[int, float, float]:
    if structure.forces is None:
        return 0, 0.0, 0.0
    forces = structure.forces[mask]  # (N', 3)
    forces = forces[np.isfinite(forces).all(axis=1)]
    norms = np.linalg.norm(forces, axis=1)
    return len(forces), float((norms**2).sum()), float(norms.max(initial=0.0))


def _force_size(sums: Sequence[tuple[int, float, float]]) -> ForceSize:
    count, squares, largest = np.array(sums, dtype=float).reshape(-1, 3).T  # each (B,)
    if not count.sum():
        return ForceSize(np.nan, np.nan)
    return ForceSize(float(np.sqrt(squares.sum() / (3 * count.sum()))), float(largest.max()))


def _spread(values: np.ndarray) -> Spread:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Spread(np.nan, np.nan, np.nan, np.nan, np.nan)
    statistics = (np.mean, np.std, np.min, np.median, np.max)
    return Spread(*(float(statistic(finite)) for statistic in statistics))


def _by_element(values: np.ndarray) -> dict[str, float]:
    return {chemical_symbols[number]: values[number].item() for number in np.flatnonzero(values)}


def _fit(compositions: np.ndarray, energies: np.ndarray) -> LinearFit | None:
    finite = np.isfinite(energies)
    if not finite.any():
        return None
    compositions, energies = compositions[finite], energies[finite]
    present = np.flatnonzero(compositions.any(axis=0))
    solution = np.linalg.lstsq(compositions[:, present], energies, rcond=None)[0]
    residual = energies - compositions[:, present] @ solution
    names = (chemical_symbols[number] for number in present)
    return LinearFit(dict(zip(names, solution.tolist(), strict=True)), _rms(residual), _rms(energies))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
