"""Defects of a data set that would spoil a run, structure by structure and as a whole.

The thresholds are heuristics. Only what no run can use is an error; the rest is a warning, for a person to judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.neighborlist import neighbor_list

from dens_plugin.data.arrays import BREAKS, Partial, Presence
from dens_plugin.data.bonds import in_bohr
from dens_plugin.data.overlap import OVERLAP, OVERLAP_REMEDY
from dens_plugin.data.statistics import Statistics
from dens_plugin.data.structures import Structure

Severity = Literal["error", "warning"]

ISOLATION = 5.0  # Å; about the shortest cutoff in use
NET_FORCE = (0.1, 0.02)  # eV/Å, and share of the sum of the norms; DFT on a grid leaves a little
EXPLODING_FORCE = 50.0  # eV/Å, of one atom; OC20 left out frames beyond it
LARGE_FORCES = 10.0  # eV/Å, rms of a component: kcal/mol/Å are 23 times the number in eV/Å, data have 0.1 to 3
SMALL_FORCES = 0.03  # eV/Å: Hartree/Bohr are a 51st part of the number in eV/Å
LARGE_ENERGY = 30.0  # eV, rms; referenced energies (adsorption, formation) are smaller
EXPLAINED = 0.1  # residual of the linear fit over rms: below it the energy is mostly composition
MAX_ELEMENTS = 90  # default max_num_elements of fairchem's networks; they assert atomic numbers below it

_PLACES = 3  # structures named in a message
_DAMAGED_PLACES = 20  # the same, of records that are to be removed or mended one by one


class Finding(NamedTuple):
    """A defect: its severity, and a message that says where it is and what to do."""

    severity: Severity
    message: str


class Tally:
    """Runs the checks of single structures and counts what they find."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}
        self._seen: set[tuple[str, str]] = set()
        self._presence = Presence()
        self._phrases: set[str] = set()
        self._damaged: dict[int, str] = {}

    def add(self, index: int, structure: Structure) -> bool:
        """Check one structure.

        Args:
            index: Its place in the data set, for the messages.
            structure: The structure.

        Returns:
            Whether its arrays belong together, so that statistics can take it in.
        """
        self._presence.add(structure, _place(index, structure))
        for phrase in structure.departures:
            self._count(phrase, _place(index, structure))
        self._phrases.update(structure.departures)
        if self._is_repeated(structure):
            self._count(_REPEATED, _place(index, structure))
        if self._is_broken(index, structure):
            return False
        nearest = _nearest(structure)
        for name, check in _CHECKS.items():
            if check.fails(structure, nearest):
                self._count(name, _place(index, structure))
        return True

    def add_damage(self, index: int, problem: str) -> None:
        """Count a record that cannot be read, and why."""
        self._damaged[index] = problem

    def require_any(self) -> None:
        """Raise ValueError if no record could be read."""
        if self._damaged and not self._presence.looked_at:
            raise ValueError(_damage(self._damaged))

    def findings(self) -> list[Finding]:
        """What was found so far, errors first."""
        found = [Finding("error", _damage(self._damaged))] if self._damaged else []
        found += [
            Finding("error", self._sentence(name, kind.remedy)) for name, kind in BREAKS.items() if name in self._counts
        ]
        found += [self._finding(name, check) for name, check in _CHECKS.items() if name in self._counts]
        found += [_partial(partial, self._presence.looked_at) for partial in self._presence.partial()]
        if _REPEATED in self._counts:
            found.append(Finding("warning", self._sentence(_REPEATED, _TWICE)))
        found += [Finding("warning", self._sentence(phrase, _OTHERWISE)) for phrase in sorted(self._phrases)]
        return sorted(found, key=lambda finding: finding.severity)

    def _is_broken(self, index: int, structure: Structure) -> bool:
        details = {name: kind.details(structure) for name, kind in BREAKS.items()}
        for name, text in details.items():
            if text:
                self._count(name, f"{_place(index, structure)}: {text}")
        return any(details.values())

    def _count(self, name: str, place: str) -> None:
        self._counts[name] += 1
        places = self._places.setdefault(name, [])
        if len(places) < _PLACES:
            places.append(place)

    def _is_repeated(self, structure: Structure) -> bool:
        if structure.sid is None:
            return False
        name = str(structure.sid), str(structure.fid)
        repeated = name in self._seen
        self._seen.add(name)
        return repeated

    def _finding(self, name: str, check: _Check) -> Finding:
        looked_at = self._presence.looked_at
        if name == _NO_FORCES and self._counts[name] == looked_at and self._counts[_NO_ENERGY] < looked_at:
            return Finding("warning", "no structure has forces: only energies and other labels can be trained on.")
        return Finding(check.severity, self._sentence(name, check.remedy))

    def _sentence(self, name: str, remedy: str) -> str:
        count = self._counts[name]
        places = ", ".join(self._places[name]) + (", ..." if count > _PLACES else "")
        return f"{count} structure{'s' if count > 1 else ''} with {name}: index {places}; {remedy}"


def of_whole(statistics: Statistics) -> list[Finding]:
    """Findings that only the data set as a whole shows."""
    checks = (_unreferenced, _force_unit, _length_unit, _constant_energy, _heavy_elements, _several_periodicities)
    found = (check(statistics) for check in checks)
    return [finding for finding in found if finding is not None]


def of_metadata(natoms: Sequence[int] | None, counted: Sequence[tuple[int, int]], *, length: int) -> list[Finding]:
    """Findings about the ``metadata.npz`` of LMDB files.

    Args:
        natoms: Numbers of atoms it gives; None if there is none.
        counted: Index and true number of atoms of the structures that were looked at.
        length: Number of structures in the data set.
    """
    if natoms is None:
        return [Finding("warning", "no metadata.npz: fairchem's `load_balancing: atoms` will not start.")]
    if len(natoms) != length:
        counts = f"metadata.npz counts {len(natoms)} structures, the data set has {length}"
        return [Finding("error", f"{counts}: give the whole folder if this is one of its files, else convert anew.")]
    wrong = [index for index, count in counted if natoms[index] != count]
    if not wrong:
        return []
    where = f"{len(wrong)} structures, first index {wrong[0]}"
    return [Finding("error", f"metadata.npz is wrong about the number of atoms of {where}: convert anew.")]


class _Check(NamedTuple):
    severity: Severity
    remedy: str
    fails: Callable[[Structure, np.ndarray], bool]  # of the structure and the distances of nearest neighbours


def _place(index: int, structure: Structure) -> str:
    return f"{index} (sid {structure.sid}, fid {structure.fid})"


def _damage(problems: Mapping[int, str]) -> str:
    count, places = len(problems), ", ".join(map(str, list(problems)[:_DAMAGED_PLACES]))
    more = f" and {count - _DAMAGED_PLACES} more" if count > _DAMAGED_PLACES else ""
    first = next(iter(problems.values()))
    return f"{count} record{'s' if count > 1 else ''} that cannot be read: index {places}{more}; the first: {first}"


def _partial(partial: Partial, looked_at: int) -> Finding:
    lacking = f"{partial.lacking} of {looked_at} structures without `{partial.field}`, first index {partial.first}; "
    if partial.field == "pbc":
        return Finding(
            "error",
            lacking + "a batch that has none is periodic in all directions: give it to all structures, or to none.",
        )
    return Finding(
        "warning",
        lacking + "taken for zero there (free atoms, tag 0); the plain `fairchem` command needs it in all or none.",
    )


def _nearest(structure: Structure) -> np.ndarray:
    """Distance of every atom's nearest neighbour in Å, inf beyond ``ISOLATION``, shape (N,)."""
    nearest = np.full(len(structure.numbers), np.inf)
    if not (np.isfinite(structure.positions).all() and np.isfinite(structure.cell).all()):
        return nearest
    atoms = Atoms(structure.numbers, positions=structure.positions)
    if structure.pbc.any() and not structure.is_flat:
        atoms.set_cell(structure.whole_cell)  # only then: ASE searches all of a box, however empty
        atoms.set_pbc(structure.pbc)
    centers, distances = neighbor_list("id", atoms, ISOLATION)
    np.minimum.at(nearest, centers, distances)
    return nearest


def _is_bad(value: float | np.ndarray | None) -> bool:
    return value is not None and not np.isfinite(value).all()


def _has_bad_geometry(structure: Structure, nearest: np.ndarray) -> bool:
    return _is_bad(structure.positions) or _is_bad(structure.cell)


def _is_flat(structure: Structure) -> bool:
    return structure.is_flat


def _has_net_force(structure: Structure, nearest: np.ndarray) -> bool:
    if structure.forces is None or structure.fixed.any():
        return False
    absolute, share = NET_FORCE
    allowed = absolute + share * np.linalg.norm(structure.forces, axis=1).sum()
    return bool(np.linalg.norm(structure.forces.sum(axis=0)) > allowed)


def _has_exploding_force(structure: Structure, nearest: np.ndarray) -> bool:
    if structure.forces is None:
        return False
    norms = np.linalg.norm(structure.forces, axis=1)
    return bool((norms[np.isfinite(norms)] > EXPLODING_FORCE).any())


_REPEATED = "a sid and fid that came before"
_TWICE = (
    "`dens predict` and `dens relax` refuse them, and evaluation counts them twice; two LMDBs may both count from 0: "
    "number them anew."
)
_NO_ENERGY, _NO_FORCES = "no energy", "no forces"
_OTHERWISE = "`dens` reads it as fairchem's own converters write it, the plain `fairchem` command fails: convert anew."

_CHECKS = {
    "NaN or infinite positions or cell": _Check("error", "remove them.", _has_bad_geometry),
    "a NaN or infinite energy": _Check("error", "remove them.", lambda s, nearest: _is_bad(s.energy)),
    "NaN or infinite forces": _Check("error", "remove them.", lambda s, nearest: _is_bad(s.forces)),
    "a periodic cell without volume": _Check(
        "error", "give it its cell, or set pbc to false along vectors that are zero.", lambda s, nearest: _is_flat(s)
    ),
    "neither pbc nor a cell": _Check(
        "warning",
        "fairchem takes them for periodic unless the model has `use_pbc: false`: write pbc for molecules.",
        lambda s, nearest: "pbc" in s.absent and not s.cell.any(),
    ),
    "no sid": _Check(
        "warning",
        "`dens predict` and `dens relax` need one to name their results.",
        lambda s, nearest: s.sid is None,
    ),
    _NO_ENERGY: _Check("error", "only a test set can do without.", lambda s, nearest: s.energy is None),
    _NO_FORCES: _Check("error", "only a test set can do without.", lambda s, nearest: s.forces is None),
    f"atoms less than {OVERLAP} Å apart": _Check(
        "error",
        f"{OVERLAP_REMEDY}.",
        lambda s, nearest: bool((nearest < OVERLAP).any()),
    ),
    f"an atom without neighbour within {ISOLATION:g} Å": _Check(
        "warning",
        "a network with a shorter cutoff sees it alone; check cell, pbc and the unit of length.",
        lambda s, nearest: bool(np.isinf(nearest).any()) and not _has_bad_geometry(s, nearest),
    ),
    "no free atom": _Check("warning", "their forces are not trained on.", lambda s, nearest: bool(s.fixed.all())),
    f"a force beyond {EXPLODING_FORCE:g} eV/Å": _Check(
        "warning", "a few of them make up most of the loss and of the normaliser.", _has_exploding_force
    ),
    "a net force although no atom is fixed": _Check(
        "warning", "check that forces were not permuted, cut or taken under a constraint.", _has_net_force
    ),
}


def _unreferenced(statistics: Statistics) -> Finding | None:
    fit = statistics.fit
    if fit is None or fit.rms < LARGE_ENERGY or fit.residual > EXPLAINED * fit.rms:
        return None
    return Finding(
        "warning",
        f"energies look like total energies: rms {fit.rms:.1f} eV, of which the composition explains all but "
        f"{fit.residual:.3g} eV. Subtract references per element, for OC20 by `dens data oc20` without "
        "--no-ref-energy, for a file of your own by `dens data molecules`, else with `transforms: {element_references: "
        "{fit: {targets: [energy], batch_size: 64}}}`.",
    )


def _force_unit(statistics: Statistics) -> Finding | None:
    rms = statistics.free_forces.rms
    if rms > LARGE_FORCES:
        return Finding("warning", f"forces have rms {rms:.3g}: in eV/Å that is a lot; are they in kcal/mol/Å?")
    if rms < SMALL_FORCES:
        return Finding(
            "warning",
            f"forces have rms {rms:.3g}: in eV/Å that is little; are they in Hartree/Bohr, or all structures relaxed?",
        )
    return None


def _length_unit(statistics: Statistics) -> Finding | None:
    doubt = in_bohr(statistics.stretch)
    return None if doubt is None else Finding("warning", f"{doubt}.")


def _constant_energy(statistics: Statistics) -> Finding | None:
    if not statistics.has_one_energy:  # NaN is not
        return None
    if statistics.atoms.std > 0:
        return Finding("warning", "all energies are the same although the structures are not: are they labels?")
    return Finding("warning", "there is one energy: the stdev of 1 eV in the normaliser only stands in for another.")


def _several_periodicities(statistics: Statistics) -> Finding | None:
    if len(statistics.pbc) < 2:
        return None
    kinds = ", ".join(f"{name}: {count}" for name, count in statistics.pbc.items())
    return Finding(
        "warning",
        f"structures of several periodicities ({kinds}): `dens` finds the neighbours of each by its own; a model with "
        "`use_pbc: false` refuses the periodic ones, and the plain `fairchem` command takes that of a batch's first "
        "structure for all.",
    )


def _heavy_elements(statistics: Statistics) -> Finding | None:
    heavy = [symbol for symbol in statistics.elements if atomic_numbers[symbol] >= MAX_ELEMENTS]
    if not heavy:
        return None
    least = 1 + max(atomic_numbers[symbol] for symbol in heavy)
    return Finding(
        "warning",
        f"models with max_num_elements {MAX_ELEMENTS}, the default, refuse element{'s' if len(heavy) > 1 else ''} "
        f"{', '.join(heavy)}: atomic numbers must be below it; raise it to {least} or more.",
    )
