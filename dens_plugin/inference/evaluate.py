"""``dens evaluate FILE --checkpoint P``: errors of a model on a file of structures, and its predictions as a file."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from tqdm import tqdm

from dens_plugin.columns import aligned
from dens_plugin.data.molecules.files import open_frames
from dens_plugin.data.molecules.units import CHOICES
from dens_plugin.data.output import require_makeable
from dens_plugin.data.structures import Keys, Structure
from dens_plugin.inference.calculator import load_calculator, require_properties

ENERGY, FORCES = "predicted_energy", "predicted_forces"  # in the written file, beside the labels
_MILLI = 1000.0


class Evaluated(NamedTuple):
    """A structure and what the model says of it.

    Attributes:
        structure: with labels, where the file has some.
        energy: eV.
        forces: (N, 3) eV/Å; None of a model of energies alone.
    """

    structure: Structure
    energy: float
    forces: np.ndarray | None

    def as_atoms(self) -> Atoms:
        """For extended XYZ: labels under their usual names, predictions under names of their own."""
        structure = self.structure
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
        if structure.fixed.any():
            atoms.set_constraint(FixAtoms(np.flatnonzero(structure.fixed)))
        labels = {"energy": structure.energy, "forces": structure.forces}
        known = {name: value for name, value in labels.items() if value is not None}
        if known:
            atoms.calc = SinglePointCalculator(atoms, **known)
        atoms.info[ENERGY] = self.energy
        if self.forces is not None:
            atoms.arrays[FORCES] = self.forces
        return atoms


class Error(NamedTuple):
    """An error over a file, in meV or meV/Å.

    Attributes:
        mae: mean absolute error.
        rmse: root of the mean squared error.
        numbers: how many were compared.
    """

    mae: float
    rmse: float
    numbers: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens evaluate``."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="extended XYZ (also .xz), or what `dens data molecules` reads; labels are optional",
    )
    parser.add_argument("--checkpoint", required=True, metavar="P", help="best_checkpoint.pt of a run")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="extended XYZ to write predictions to (default: none is written)"
    )
    parser.add_argument("--units", choices=CHOICES, help="of the file, where it does not say them")
    parser.add_argument("--energy-key", metavar="NAME", help="what the file calls energies")
    parser.add_argument("--forces-key", metavar="NAME", help="what the file calls forces")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; by default a GPU where there is one")
    parser.add_argument("--cpu", action="store_true", help="the same as --device cpu")
    parser.add_argument("--max-structures", type=int, metavar="N", help="take so many, evenly spread, instead of all")


def run(args: argparse.Namespace) -> None:
    """Evaluate a file and print the errors.

    Raises:
        FileNotFoundError: if the file or the checkpoint does not exist.
        ValueError: if the file cannot be read, or the model cannot compute one of its structures.
    """
    if args.out is not None and args.out.exists():
        raise ValueError(f"'{args.out}' exists; give another --out, or delete it first")
    if args.out is not None:
        require_makeable(args.out)
    if args.cpu and args.device not in (None, "cpu"):
        raise ValueError(f"--cpu and --device {args.device} contradict each other; leave one of them out")
    if args.max_structures is not None and args.max_structures < 1:
        raise ValueError(f"--max-structures must be at least 1, got {args.max_structures}")
    frames = open_frames(Path(args.file), units=args.units, keys=Keys(energy=args.energy_key, forces=args.forces_key))
    most = frames.length if args.max_structures is None else min(frames.length, args.max_structures)
    indices = np.unique(np.linspace(0, frames.length - 1, most).round().astype(int)).tolist()
    names = [f"structure {index} of {args.file}" for index in indices]
    for index, name in zip(indices, names, strict=True):  # before hours of work
        _require_finite_labels(frames.read(index), name)
    calculator = load_calculator(args.checkpoint, device="cpu" if args.cpu else args.device)
    require_properties(calculator, ["energy"], what="an evaluation")
    structures = (frames.read(index) for index in tqdm(indices, unit="structure", disable=None))
    evaluated = list(evaluate(structures, calculator, names=names))
    print("\n".join(table(evaluated)))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write(args.out, [each.as_atoms() for each in evaluated], format="extxyz")
        of_forces = f", {FORCES} in eV/Å" if evaluated[0].forces is not None else ""
        print(f"Predictions: {args.out} ({ENERGY} in eV{of_forces})")


def _require_finite_labels(structure: Structure, name: str) -> None:
    for label, value in (("energy", structure.energy), ("forces", structure.forces)):
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"{name} has NaN or infinite {label}: remove the frame, or its label")


def evaluate(structures: Iterator[Structure], calculator: Calculator, *, names: Sequence[str]) -> Iterator[Evaluated]:
    """What a model says of some structures, one after the other.

    Args:
        structures: in eV and Å.
        calculator: of `load_calculator`.
        names: of the structures, for messages.

    Raises:
        ValueError: naming a structure that the model cannot compute.
    """
    for name, structure in zip(names, structures, strict=True):
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
        atoms.calc = calculator
        try:
            energy = float(atoms.get_potential_energy())
            forces = atoms.get_forces() if "forces" in calculator.implemented_properties else None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        yield Evaluated(structure, energy, forces)


def errors_of(evaluated: Sequence[Evaluated]) -> dict[str, Error]:
    """Errors by quantity; one without labels, or with labels of fixed atoms alone, is left out."""
    energies = [each for each in evaluated if each.structure.energy is not None]
    differences: dict[str, list[Any]] = {
        "energy (meV)": [each.energy - (each.structure.energy or 0.0) for each in energies],
        "energy per atom (meV)": [
            (each.energy - (each.structure.energy or 0.0)) / len(each.structure.numbers) for each in energies
        ],
        "forces (meV/Å)": [
            (each.forces - each.structure.forces)[~each.structure.fixed].ravel()
            for each in evaluated
            if each.structure.forces is not None and each.forces is not None
        ],
    }
    joined = {name: np.hstack(values) for name, values in differences.items() if values}
    return {name: _error(values) for name, values in joined.items() if values.size}


def table(evaluated: Sequence[Evaluated]) -> list[str]:
    """Lines of a table of errors; one that says so where there are no labels."""
    errors = errors_of(evaluated)
    lines = [f"{len(evaluated):,} structures"]
    if not errors:
        return [*lines, "There are no labels to compare with."]
    rows = [[name, f"{each.mae:,.1f}", f"{each.rmse:,.1f}", f"{each.numbers:,}"] for name, each in errors.items()]
    lines += aligned([["", "MAE", "RMSE", "numbers"], *rows], left=1)
    if len(evaluated) > 1 and _is_constant(evaluated):
        logging.warning(
            "All energies are off by nearly the same amount: the file and the training data may have other references."
        )
    return lines


def _error(differences: np.ndarray) -> Error:
    scaled = _MILLI * differences
    return Error(float(np.abs(scaled).mean()), float(np.sqrt(np.square(scaled).mean())), scaled.size)


def _is_constant(evaluated: Sequence[Evaluated]) -> bool:
    """Whether energies are off by a constant that is far larger than what is left."""
    off = np.array([each.energy - each.structure.energy for each in evaluated if each.structure.energy is not None])
    return len(off) > 1 and bool(abs(off.mean()) > 1.0 and off.std() < 0.05 * abs(off.mean()))
