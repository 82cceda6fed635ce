"""ANI-1, ANI-1x and SPICE as their authors publish them: HDF5 files with a group per molecule or formula.

| set | arrays of a group | units | molecule |
|---|---|---|---|
| ANI-1 | ``species``, ``coordinates``, ``energies`` (no forces), ``smiles`` | hartree, Å | the group |
| ANI-1x | ``atomic_numbers``, ``coordinates``, ``wb97x_dz.energy``, ``wb97x_dz.forces``, further levels; NaN where a level was not computed | hartree, hartree/Å, Å | a formula: its isomers are not told apart |
| SPICE | ``atomic_numbers``, ``conformations``, ``dft_total_energy``, ``dft_total_gradient``, ``formation_energy`` | hartree, hartree/bohr, bohr | the group |

References:
    Smith et al., Scientific Data 4, 170193 (2017); Smith et al., Scientific Data 7, 134 (2020); Eastman et al.,
    Scientific Data 10, 11 (2023).
"""  # noqa: E501

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import units
from ase.data import atomic_numbers

from dens_plugin.data.molecules.frames import Frames, molecule_frame
from dens_plugin.data.molecules.units import Units
from dens_plugin.data.structures import Keys, Structure

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".h5", ".hdf5")

_AGAIN = "copy or download it again."
_ATOM = re.compile(r"\[[^\]]*?([+-]\d+|[+]+|-+)?(?::\d+)?\]")  # of SMILES, with its charge


class _Layout(NamedTuple):
    """How a set arranges its groups.

    Attributes:
        name: Of the set.
        elements: The array of elements.
        positions: That of conformations, by which the layout is told.
        energy: The usual array of energies.
        forces: That of forces; None where there are none.
        sign: Of what stands there: -1 for gradients.
        units: Of a file that does not say.
    """

    name: str
    elements: str
    positions: str
    energy: str
    forces: str | None
    sign: float
    units: Units


_PER_ANGSTROM = Units(units.Hartree, units.Hartree, 1.0, "hartree and Å")
_PER_BOHR = Units(units.Hartree, units.Hartree / units.Bohr, units.Bohr, "hartree and bohr")
_LAYOUTS = (
    _Layout("ANI-1", "species", "coordinates", "energies", None, 1.0, _PER_ANGSTROM),
    _Layout("ANI-1x", "atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces", 1.0, _PER_ANGSTROM),
    _Layout("SPICE", "atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient", -1.0, _PER_BOHR),
)


class _Group(NamedTuple):
    """A group's conformations that have labels.

    Attributes:
        name: Its path in the file.
        rows: Their places in its arrays, shape (n,).
    """

    name: str
    rows: np.ndarray


class _Arrays(NamedTuple):
    """A group in eV and Å."""

    elements: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray | None
    molecule: str
    charge: float


def open_hdf5(
    path: Path, keys: Keys, chosen: Units | None = None, *, option: str = "--units", forces: bool = True
) -> Frames:
    """Open an HDF5 file; groups are read when a frame of theirs is asked for.

    Args:
        path: The file.
        keys: Of energies and forces, where they are not the usual ones.
        chosen: The units, if not those of the set.
        option: What the user calls them, for the messages.
        forces: Whether they are wanted.

    Raises:
        ImportError: If h5py is not installed.
        ValueError: If the file is truncated or none, or a group lacks an array.
    """
    file = _opened(path)
    first = next(_groups(file), None)
    layout = None if first is None else _layout_of(file[first])
    if layout is None:
        found = "no groups with arrays" if first is None else f"a group {first} with {', '.join(file[first])}"
        raise ValueError(f"{path} has {found}, which is neither ANI-1, ANI-1x nor SPICE: is it a set of molecules?")
    layout = _with_keys(layout, keys, file[first])
    layout = layout if forces else layout._replace(forces=None)
    if chosen is None:
        _require_units(path, file[first], layout, option)
    groups, dropped = _usable(path, file, layout)
    ends = np.cumsum([len(group.rows) for group in groups])
    if not len(ends) or ends[-1] == 0:
        raise ValueError(f"{path} has no conformation with {layout.energy}: --energy-key names another array.")
    reader = _Reader(path, file, layout, chosen or layout.units)

    def read(index: int) -> Structure:
        place = bisect.bisect(ends, index)
        group = groups[place]
        return reader.read(group, int(group.rows[index - (ends[place - 1] if place else 0)]), index)

    notes = [f"{path}: {layout.name}, {layout.energy}" + (f" and {layout.forces}" if layout.forces else ", no forces")]
    if dropped:
        notes.append(f"{path}: left out {dropped:,} conformations whose {layout.energy} or forces are NaN")
    return Frames(
        path,
        int(ends[-1]),
        read,
        chosen or layout.units,
        f"give {option}",
        several=True,
        forces=layout.forces is not None,
        grouped=True,
        notes=notes,
    )


class _Reader:
    """Reads conformations, and keeps the last group: neighbours are asked for one after the other."""

    def __init__(self, path: Path, file: h5py.File, layout: _Layout, units_: Units) -> None:
        self._path, self._file, self._layout, self._units = path, file, layout, units_
        self._last: tuple[str, _Arrays] | None = None

    def read(self, group: _Group, row: int, fid: int) -> Structure:
        if self._last is None or self._last[0] != group.name:
            try:
                self._last = group.name, self._arrays(group.name)
            except OSError as error:
                raise ValueError(f"{self._path}, group {group.name} cannot be read ({error}): {_AGAIN}") from error
        arrays = self._last[1]
        return molecule_frame(
            arrays.elements,
            arrays.positions[row],
            energy=float(arrays.energies[row]),
            forces=None if arrays.forces is None else arrays.forces[row],
            fid=fid,
            molecule=arrays.molecule,
            charge=arrays.charge,
        )

    def _arrays(self, name: str) -> _Arrays:
        group, layout, scale = self._file[name], self._layout, self._units
        where = f"{self._path}, group {name}"
        elements = _elements(group[layout.elements][()], where)
        positions = np.asarray(group[layout.positions][()], dtype=float)
        energies = np.asarray(group[layout.energy][()], dtype=float).reshape(-1)
        forces = None if layout.forces is None else np.asarray(group[layout.forces][()], dtype=float)
        expected = (len(energies), len(elements), 3)
        if positions.shape != expected or (forces is not None and forces.shape != expected):
            raise ValueError(
                f"{where}: elements {elements.shape}, {layout.positions} {positions.shape}, {layout.energy} "
                f"{energies.shape}{'' if forces is None else f' and {layout.forces} {forces.shape}'} do not belong "
                f"together: {_AGAIN}"
            )
        smiles = _text(group["smiles"][()]) if "smiles" in group else ""
        return _Arrays(
            elements,
            scale.length * positions,
            scale.energy * energies,
            None if forces is None else layout.sign * scale.forces * forces,
            smiles or name,
            charge_of(smiles),
        )


def charge_of(smiles: str) -> float:
    """The charge of a molecule by its SMILES, 0 for none."""
    total = 0
    for sign in (match[1] for match in _ATOM.finditer(smiles) if match[1]):
        total += int(sign) if sign[-1].isdecimal() else sign.count("+") - sign.count("-")
    return float(total)


def _opened(path: Path) -> h5py.File:
    if find_spec("h5py") is None:
        raise ImportError(f"{path} is an HDF5 file, which needs h5py: pip install 'dens-plugin[hdf5]'")
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is truncated or no HDF5 file ({error}): {_AGAIN}") from error


def _groups(file: h5py.File, inside: str = "") -> Iterator[str]:
    """Paths of the groups that hold arrays, in the file's order."""
    group = file[inside] if inside else file
    children = [name for name, kind in ((name, group.get(name, getclass=True)) for name in group) if _is_group(kind)]
    if inside and len(children) < len(group):
        yield inside
    for name in children:
        yield from _groups(file, f"{inside}/{name}" if inside else name)


def _is_group(kind: type) -> bool:
    return kind.__name__ in ("Group", "File")


def _layout_of(group: h5py.Group) -> _Layout | None:
    return next((layout for layout in _LAYOUTS if layout.elements in group and layout.positions in group), None)


def _with_keys(layout: _Layout, keys: Keys, group: h5py.Group) -> _Layout:
    """The layout with a user's arrays; another level of energies has its own forces, or none."""
    if keys.energy is not None and keys.energy != layout.energy:
        level = keys.energy.rpartition(".")[0]
        forces = f"{level}.forces" if level and f"{level}.forces" in group else None
        forces = layout.forces if layout.name == "SPICE" else forces  # formation energies have the same gradient
        layout = layout._replace(energy=keys.energy, forces=forces)
    return layout if keys.forces is None else layout._replace(forces=keys.forces, sign=_sign(keys.forces))


def _sign(name: str) -> float:
    return -1.0 if "grad" in name.lower() else 1.0


def _require_units(path: Path, group: h5py.Group, layout: _Layout, option: str) -> None:
    """Raise ValueError for a file whose own words about units differ from the set's."""
    expected = {layout.energy: "hartree", layout.positions: "bohr" if layout.units is _PER_BOHR else "ang"}
    for name, unit in expected.items():
        named = group[name].attrs.get("units") if name in group else None
        named = named.decode() if isinstance(named, bytes) else named
        if isinstance(named, str) and not named.lower().startswith(unit):
            raise ValueError(f"{path}: {name} is in {named}, {layout.name} is in {layout.units.name}: give {option}.")


def _usable(path: Path, file: h5py.File, layout: _Layout) -> tuple[list[_Group], int]:
    """All groups with the rows that have labels, and how many have none."""
    groups, dropped = [], 0
    needed = [layout.elements, layout.positions, layout.energy, *([layout.forces] if layout.forces else [])]
    for name in _groups(file):
        group = file[name]
        missing = [key for key in needed if key not in group]
        if missing:
            alone = " --energies-only does without forces." if missing == [layout.forces] else ""
            raise ValueError(
                f"{path}, group {name} has no {' and no '.join(missing)}; it has {', '.join(group)}: --energy-key and "
                f"--forces-key name others.{alone}"
            )
        try:
            has_labels = np.isfinite(np.asarray(group[layout.energy][()], dtype=float).reshape(-1))
            if layout.forces is not None and layout.name == "ANI-1x":
                forces = np.asarray(group[layout.forces][()])
                has_labels &= np.isfinite(forces.reshape(len(forces), -1)).all(axis=1)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, group {name} cannot be read ({error}): {_AGAIN}") from error
        dropped += int((~has_labels).sum())
        groups.append(_Group(name, np.flatnonzero(has_labels)))
    return groups, dropped


def _elements(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind in "iu":
        return values.astype(int).reshape(-1)
    symbols = [word.decode() if isinstance(word, bytes) else str(word) for word in values.reshape(-1)]
    foreign = [symbol for symbol in symbols if not atomic_numbers.get(symbol)]  # X is 0
    if foreign:
        raise ValueError(f"{where} names an element '{foreign[0]}' that does not exist: {_AGAIN}")
    return np.array([atomic_numbers[symbol] for symbol in symbols])


def _text(values: object) -> str:
    """A string, or the letters of one, as ANI-1 keeps them."""
    words = np.asarray(values).reshape(-1).tolist()
    return "".join(word.decode() if isinstance(word, bytes) else str(word) for word in words)
