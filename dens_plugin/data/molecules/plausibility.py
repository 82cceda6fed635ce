"""Whether numbers are in the units that they are taken for: the size of forces, and energies against their work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dens_plugin.data.bonds import in_bohr, middle_of, stretch
from dens_plugin.data.findings import LARGE_FORCES, SMALL_FORCES
from dens_plugin.data.molecules.frames import Frames
from dens_plugin.data.scales import is_rounding, size_of
from dens_plugin.data.structures import Structure

_COMPARED = 200  # frames that are looked at; the time grows with the square
_MEASURED = 50  # frames whose bonds are
_CLOSEST = 100  # pairs of them
_LEAST = 30  # frames, and pairs: fewer tell nothing
_NEAR = 0.3  # Å rms: beyond it the mean of two forces says nothing of what lies between
_CORRELATION = 0.8
# Energies of other frames have a correlation of up to 0.4 with the work on real data, their own never below 0.7 where
# there are this many pairs.
_MANY, _UNRELATED = 60, 0.5
_LITTLE = 0.1  # eV/Å, rms of a component: less than that of any molecule at room temperature
_GAP = 10, 0.5  # standard deviations, and eV an atom: how far the mean energies of one molecule may be apart
_SLOPE = (0.6, 1.6)  # noise gives 1.0 to 1.15 on real data; forces in hartree/bohr taken for hartree/Å give 1.9
_KCAL_RATIO = (15, 30)  # eV over kcal/mol is 23


class Labels(NamedTuple):
    """What the labels of some frames of a file look like.

    Attributes:
        frames: The file.
        rms: Of a component of the forces, in eV/Å; NaN without forces.
        mean: Of the energies, in eV.
        spread: Standard deviation of the energies, in eV.
        natoms: Of the largest frame.
        slope: By how much energies change per work of the forces; None where no frames are alike enough to tell.
    """

    frames: Frames
    rms: float
    mean: float
    spread: float
    natoms: int
    slope: float | None

    def __str__(self) -> str:
        if not self.frames.forces:
            return f"{_named(self.frames)}: energies only, whose units nothing here can tell"
        work = "no frames alike enough to compare energies with them"
        if self.slope is not None:
            work = f"energies change by {self.slope:.2f} times their work"
        text = f"{_named(self.frames)}: forces rms {self.rms:.3f} eV/Å, {work}"
        return text if self.rms > _LITTLE else f"{text}\nwarning: {self._doubt()}"

    def _doubt(self) -> str:
        raw = self.rms / self.frames.units.forces
        unscaled = "" if raw == self.rms else f", which the numbers of the file, {raw:.3g}, would be in eV/Å"
        return (
            f"{self.frames.path}: thermal forces have an rms of 0.3 to 3 eV/Å{unscaled}; unless all structures are "
            f"nearly relaxed, {self.frames.remedy}"
        )


def require_plausible_units(frames: Frames, indices: Sequence[int] | np.ndarray, *, sure: bool = False) -> Labels:
    """Check the units of forces by their size, and those of energies by the work of the forces.

    Thermal forces have an rms of 0.3 to 3 eV/Å a component; kcal/mol/Å are 23 times the number, hartree/bohr a 51st.
    Periodic frames and very few ones are checked by size only.

    Args:
        frames: The file.
        indices: Frames of it to look at.
        sure: The user named the units, so that forces may be as small as those of relaxed structures.

    Returns:
        What was found; its text is for a person, and warns of small forces.

    Raises:
        ValueError: If the size of the forces cannot be, or energies and forces contradict each other.
    """
    places = np.linspace(0, len(indices) - 1, min(len(indices), _COMPARED)).astype(int)
    picked = [frames.read(int(indices[at])) for at in places]
    energies = np.array([structure.energy for structure in picked])
    natoms = max(len(structure.numbers) for structure in picked)
    if not frames.forces:
        return Labels(frames, np.nan, energies.mean(), energies.std(), natoms, None)
    rms = float(np.sqrt(np.mean(np.concatenate([structure.forces for structure in picked]) ** 2)))
    if rms >= LARGE_FORCES or (rms <= SMALL_FORCES and not sure):
        raise ValueError(
            f"{_named(frames)}: forces have an rms of {rms:.3g} eV/Å a component, too "
            f"{'large' if rms > 1 else 'small'} for these units ({SMALL_FORCES:g} to {LARGE_FORCES:g} are taken): "
            f"{frames.remedy}."
        )
    return Labels(frames, rms, energies.mean(), energies.std(), natoms, _required_slope(frames, picked))


def length_doubts(frames: Frames, indices: np.ndarray) -> list[str]:
    """A warning where positions of some frames look as if they were in bohr; nothing otherwise."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), _MEASURED)).astype(int)
    picked = (frames.read(int(indices[at])) for at in places)
    doubt = in_bohr(middle_of(stretch(each.numbers, each.positions, each.pbc) for each in picked))
    return [] if doubt is None else [f"warning: {frames.path}: {doubt}"]


def require_alike(train: Labels, test: Labels, *, mixed: bool) -> None:
    """Raise ValueError if the labels of a test file cannot be in the units, or of the method, of the training file's.

    Args:
        train: Of the frames of training.
        test: Of those of the other file.
        mixed: Whether compositions differ, so that energies do.
    """
    deviations, per_atom = _GAP
    allowed = deviations * max(train.spread, test.spread) + per_atom * train.natoms
    if not mixed and abs(train.mean - test.mean) > allowed:
        raise ValueError(
            f"{_named(test.frames)} has energies around {test.mean:.1f} eV, {_named(train.frames)} around "
            f"{train.mean:.1f} eV, for the same molecule: they are in other units, or of another method. "
            "--test-units says what the file for test is in."
        )
    if train.frames.forces != test.frames.forces:
        one, other = (test, train) if train.frames.forces else (train, test)
        raise ValueError(f"{_named(one.frames)} has no forces, {_named(other.frames)} has: give both the same labels.")
    if not train.frames.forces:
        return
    says_nothing = mixed or abs(train.mean) < allowed  # energies so small have no unit that shows
    if says_nothing and any(_KCAL_RATIO[0] < one / other < _KCAL_RATIO[1] for one, other in _both_ways(train, test)):
        raise ValueError(
            f"{_named(test.frames)} has forces with an rms of {test.rms:.3g} eV/Å, {_named(train.frames)} of "
            f"{train.rms:.3g} eV/Å: one of them is in kcal/mol and the other in eV. --test-units says what the file "
            "for test is in."
        )


def energy_force_slope(structures: Sequence[Structure]) -> float | None:
    """By how much energies change between close frames, per work of the forces; near 1 where the units agree.

    Frames are turned onto each other; the work is then minus the mean of both forces times the displacement.

    Args:
        structures: Frames with labels.

    Returns:
        The slope, 0 where energies have nothing to do with the work; None where no frames are alike enough to tell.
    """
    alike = [s for s in structures if not s.pbc.any() and np.array_equal(s.numbers, structures[0].numbers)]
    if len(alike) < _LEAST or len(alike[0].numbers) < 2:
        return None
    rms, work, change = _pairs(alike)
    closest = np.argsort(rms)[:_CLOSEST]
    closest = closest[rms[closest] < _NEAR]
    work, change = work[closest], change[closest]
    if len(closest) < _LEAST or is_rounding(work.std(), size=1.0):
        return None
    if is_rounding(change.std(), size=size_of(np.array([structure.energy for structure in alike]))):
        return None
    correlation = abs(np.corrcoef(work, change)[0, 1])
    if correlation < _CORRELATION:
        return 0.0 if len(closest) >= _MANY and correlation < _UNRELATED else None
    return float((change @ change) / (work @ change))


def _named(frames: Frames) -> str:
    return f"{frames.path} ({frames.units.name})"


def _both_ways(train: Labels, test: Labels) -> list[tuple[float, float]]:
    pair = max(train.rms, 1e-9), max(test.rms, 1e-9)
    return [pair, pair[::-1]]


def _required_slope(frames: Frames, structures: Sequence[Structure]) -> float | None:
    slope = energy_force_slope(structures)
    if slope == 0:
        raise ValueError(
            f"{_named(frames)}: between close frames energies do not follow the forces at all: are they those of other "
            "frames, or in another order?"
        )
    if slope is not None and not _SLOPE[0] < slope < _SLOPE[1]:
        raise ValueError(
            f"{_named(frames)}: between close frames energies change by {slope:.3g} times the work of the forces: "
            f"{_explain(slope)}."
        )
    return slope


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
