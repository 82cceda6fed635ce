"""One structure of any data set in one form, whatever its file format and its age call the fields.

This is the only place that knows that old LMDB files say ``y`` and ``force`` for ``energy`` and ``forces``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch_geometric.data import Data

from dens_plugin.cells import LEAST_VOLUME, is_flat, volume, whole_cell

ENERGY_NAMES = ("energy", "y")
FORCES_NAMES = ("forces", "force")
OPTIONAL_NAMES = ("fixed", "tags", "pbc")
_MOLECULE_NAMES = ("smiles", "molecule", "name")  # what files call the molecule that a frame is of


class Keys(NamedTuple):
    """What a file calls its labels; None for the usual names.

    Attributes:
        energy: E.g. ``REF_energy``.
        forces: E.g. ``dft_forces``.
        molecule: What tells frames of one molecule from those of another.
        targets: Further labels of whole structures.
    """

    energy: str | None = None
    forces: str | None = None
    molecule: str | None = None
    targets: tuple[str, ...] = ()


USUAL = Keys()


class Structure(NamedTuple):
    """A structure with what is known of its labels.

    Attributes:
        numbers: Atomic numbers, shape (N,).
        positions: In Å, shape (N, 3).
        cell: Lattice vectors as rows in Å, shape (3, 3).
        pbc: Whether periodic along each vector, shape (3,).
        fixed: Atoms that do not move, shape (N,).
        tags: OC20's tags, shape (N,).
        energy: In eV; None if there is no label.
        forces: In eV/Å, shape (N, 3); None if there is no label.
        sid: Identifies the system; None if the data set does not say.
        fid: Identifies the frame of the system; None if the data set does not say.
        absent: Names of the optional fields that the record lacks.
        charge: Of the whole structure, in elementary charges.
        molecule: What tells frames of one molecule from those of another; None if the data set does not say.
        properties: Further labels of the whole structure, by name.
        departures: How the record differs from fairchem's own, a phrase each.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    fixed: np.ndarray
    tags: np.ndarray
    energy: float | None
    forces: np.ndarray | None
    sid: Any
    fid: Any
    absent: tuple[str, ...] = ()
    charge: float = 0.0
    molecule: str | None = None
    properties: Mapping[str, float] = {}
    departures: tuple[str, ...] = ()

    @property
    def whole_cell(self) -> np.ndarray:
        """(3, 3) Å, the cell with zero vectors along open directions completed as in ASE; flat if a crystal's is."""
        return whole_cell(self.cell, self.pbc)

    @property
    def is_flat(self) -> bool:
        """Whether it is periodic and its cell has no volume."""
        return is_flat(self.cell, self.pbc)


def from_data(data: Data, keys: Keys = USUAL) -> Structure:
    """Read a record of an LMDB file.

    Args:
        data: The record.
        keys: What its labels are called.
    """
    positions = _array(data.pos).astype(float)
    cell = _array(data["cell"]).reshape(3, 3) if "cell" in data else np.zeros((3, 3))
    energy = _first(data, ENERGY_NAMES if keys.energy is None else (keys.energy,))
    forces = _first(data, FORCES_NAMES if keys.forces is None else (keys.forces,))
    return Structure(
        numbers=_array(data.atomic_numbers).astype(int),
        positions=positions,
        cell=cell.astype(float),
        pbc=_pbc(data, cell),
        fixed=_array_or_zeros(data, "fixed", len(positions)).astype(bool),
        tags=_array_or_zeros(data, "tags", len(positions)).astype(int),
        energy=None if energy is None else float(_array(energy).reshape(())),
        forces=None if forces is None else _array(forces).astype(float),
        sid=_plain(_first(data, ("sid",))),
        fid=_plain(_first(data, ("fid",))),
        absent=tuple(name for name in OPTIONAL_NAMES if _first(data, (name,)) is None),
    )


def from_atoms(atoms: Atoms, keys: Keys = USUAL) -> Structure:
    """Read a structure of ASE.

    Args:
        atoms: The structure.
        keys: What its labels are called.
    """
    energy, forces = label_of(atoms, keys.energy or "energy"), label_of(atoms, keys.forces or "forces")
    names = _MOLECULE_NAMES if keys.molecule is None else (keys.molecule,)
    molecule = next((atoms.info[name] for name in names if name in atoms.info), None)
    properties = {name: label_of(atoms, name) for name in keys.targets}
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        fixed=_fixed(atoms),
        tags=atoms.get_tags(),
        energy=None if energy is None else float(energy),
        forces=None if forces is None else np.asarray(forces, dtype=float),
        sid=atoms.info.get("sid"),
        fid=atoms.info.get("fid"),
        charge=_charge(atoms.info),
        molecule=None if molecule is None else str(molecule),
        properties={name: float(value) for name, value in properties.items() if value is not None},
    )


def label_of(atoms: Atoms, name: str) -> Any:
    """A label wherever ASE put it: among the calculator's results, the comment line's values or the columns."""
    places = ({} if atoms.calc is None else atoms.calc.results, atoms.info, atoms.arrays)
    return next((place[name] for place in places if name in place), None)


def _charge(info: Mapping[str, Any]) -> float:
    try:
        return float(info.get("charge", 0.0))
    except (TypeError, ValueError):
        return 0.0


def _first(data: Data, names: tuple[str, ...]) -> Any:
    return next((data[name] for name in names if name in data and data[name] is not None), None)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _array_or_zeros(data: Data, name: str, natoms: int) -> np.ndarray:
    value = _first(data, (name,))
    return np.zeros(natoms, dtype=int) if value is None else _array(value)


def _plain(value: Any) -> Any:
    """An identifier that can be compared and printed."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.tolist()
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _pbc(data: Data, cell: np.ndarray) -> np.ndarray:
    """OC20's records do not say whether they are periodic: every one with a cell is."""
    if "pbc" in data:
        return _array(data["pbc"]).reshape(3).astype(bool)
    return np.full(3, volume(cell) >= LEAST_VOLUME)


def _fixed(atoms: Atoms) -> np.ndarray:
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):  # the only constraint that fairchem keeps
            fixed[constraint.index] = True
    return fixed
