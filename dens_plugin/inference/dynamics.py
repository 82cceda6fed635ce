"""``dens nve CHECKPOINT STRUCTURE``: does molecular dynamics with a model conserve energy?

Velocity Verlet at constant energy, from velocities of a temperature. The total energy of a good model and a short
enough time step stays where it is: its trend is the drift, the rest is its fluctuation, of the order of the time step
squared. With forces that are not the gradient of the energy it drifts, however short the step, and with an energy that
jumps at the cutoff too: whether it does is looked at, pair by pair.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ase.io
import matplotlib
import numpy as np
from ase import Atoms, units
from ase.io import Trajectory
from ase.io.formats import UnknownFileTypeError
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list
from ase.optimize import LBFGS
from matplotlib.figure import Figure

from dens_plugin.data.findings import ISOLATION
from dens_plugin.data.output import require_folder
from dens_plugin.data.overlap import OVERLAP_REMEDY, overlap
from dens_plugin.figure_style import STYLE
from dens_plugin.inference.calculator import load_calculator, require_properties
from dens_plugin.inference.cutoff_jump import jump_at_cutoff
from dens_plugin.settings import count

_MILLI = 1000.0
_FMAX, _RELAXATION_STEPS = 0.01, 500  # eV/Å, for a start at rest
_TOLD_EVERY = 10  # steps of a relaxation
_RUNAWAY = 3  # times the first temperature; half of it remains from a relaxed structure
_COOL = 300.0  # K: from a lower temperature, what an unrelaxed structure gives off counts for more
_FILES = ("nve.traj", "nve.csv", "nve.png")
_COLUMNS = ("time_fs", "potential_ev", "kinetic_ev", "total_ev", "temperature_k")
_LEAST_JUMP = 0.001  # eV
_LEAST_ROWS = 3  # for a line and what it leaves


class Plan(NamedTuple):
    """What to run.

    Attributes:
        steps: Number of time steps.
        timestep: In fs.
        temperature: Of the first velocities, in K.
        seed: Of the first velocities.
        every: Steps between two rows.
    """

    steps: int = 2000
    timestep: float = 0.5
    temperature: float = 300.0
    seed: int = 0
    every: int = 10


class Conservation(NamedTuple):
    """How well the total energy was conserved.

    Attributes:
        drift: Slope of a line through the total energy, in meV per atom and ps.
        fluctuation: Root mean square of what the line leaves, in meV per atom.
        temperature: Mean over the run, in K.
    """

    drift: float
    fluctuation: float
    temperature: float

    def __str__(self) -> str:
        return (
            f"drift {self.drift:+.4g} meV/atom/ps, fluctuation {self.fluctuation:.3g} meV/atom (rms), "
            f"mean temperature {self.temperature:.0f} K"
        )


def simulate(atoms: Atoms, plan: Plan, *, trajectory: str | Path | None = None) -> np.ndarray:
    """Run molecular dynamics at constant energy; ``atoms`` moves and has a calculator.

    Args:
        atoms: The structure to start from.
        plan: What to run.
        trajectory: ASE file to write the frames to.

    Returns:
        A row every ``plan.every`` steps: time in fs, potential, kinetic and total energy in eV, temperature in K; shape
        (rows, 5).

    Raises:
        ValueError: For an impossible plan, a structure that cannot move, or an energy or force that becomes NaN or
            infinite, with the step.
    """
    _require_possible(plan)
    _require_movable(atoms)
    _draw_velocities(atoms, plan)
    rows = []
    writer = None if trajectory is None else Trajectory(str(trajectory), "w", atoms)
    dynamics = VelocityVerlet(atoms, timestep=plan.timestep * units.fs)
    try:
        for step in range(plan.steps + 1):
            if step:
                _advance(dynamics, atoms, step)
            if step % plan.every == 0:
                rows.append(_row(atoms, step * plan.timestep))
                if writer is not None:
                    writer.write()
    finally:
        if writer is not None:
            writer.close()
    return np.array(rows)


def conservation(rows: np.ndarray, natoms: int) -> Conservation:
    """The drift and fluctuation of the total energy.

    Args:
        rows: Of :func:`simulate`.
        natoms: Number of atoms.
    """
    time, total = rows[:, 0] / _MILLI, _MILLI * rows[:, 3] / natoms  # ps, meV per atom
    total = total - total.mean()
    slope, offset = np.polyfit(time, total, 1)
    rest = total - (slope * time + offset)
    return Conservation(float(slope), float(np.sqrt(np.mean(rest**2))), float(rows[:, 4].mean()))


def doubts(rows: np.ndarray, atoms: Atoms, plan: Plan) -> Iterator[str]:
    """What makes a run useless although it came to its end.

    Args:
        rows: Of :func:`simulate`.
        atoms: As they are at the end.
        plan: What was run.
    """
    hottest, allowed = rows[:, 4].max(), _RUNAWAY * max(plan.temperature, _COOL)
    if hottest > allowed:
        yield (
            f"the temperature went up to {hottest:.0f} K from {plan.temperature:g} K: the time step is too long, or "
            "the model does not know the structures that it came to"
        )
    close = overlap(atoms.positions, atoms.cell.array, atoms.pbc)
    if close is not None:
        yield f"there are {close} at the end: the model does not keep atoms apart"
    if len(set(neighbor_list("i", atoms, ISOLATION))) < len(atoms):
        yield f"an atom has no neighbour within {ISOLATION:g} Å at the end: the structure flew apart, or was not whole"


def jumps(atoms: Atoms, cutoff: float | None) -> Iterator[str]:
    """What the model itself does to the total energy, whatever the time step.

    Args:
        atoms: With a calculator.
        cutoff: Of its model in Å; None if it has none.
    """
    jump = None if cutoff is None else jump_at_cutoff(atoms, cutoff)
    if jump is not None and abs(jump.energy) > _LEAST_JUMP:
        yield (
            f"the energy jumps by {_MILLI * jump.energy:+.2g} meV when atoms {jump.first} and {jump.second} pass the "
            f"model's cutoff of {cutoff:g} Å, so that a shorter time step does not help: train with a cutoff beyond "
            "the molecule, with `smooth_cutoff: true` (Equiformer), or another model (docs/own_data.md)"
        )


def relax(atoms: Atoms, *, fmax: float = _FMAX, steps: int = _RELAXATION_STEPS, quiet: bool = True) -> bool:
    """Relax a structure in place by L-BFGS.

    Args:
        atoms: The structure, with a calculator.
        fmax: Largest force to stop at, in eV/Å.
        steps: The most to make.
        quiet: Whether not to print the energy and the largest force now and then.

    Returns:
        Whether its largest force is below ``fmax`` now.
    """
    optimizer = LBFGS(atoms, logfile=None)
    if not quiet:
        optimizer.attach(lambda: _tell(optimizer), interval=_TOLD_EVERY)
    return bool(optimizer.run(fmax=fmax, steps=steps))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dens nve``."""
    plan = Plan()
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="best_checkpoint.pt of a run")
    parser.add_argument("structure", metavar="STRUCTURE", help="a file of ASE, its last frame; FILE@0 for the first")
    parser.add_argument("--steps", type=int, default=plan.steps, metavar="N", help="time steps (default: %(default)s)")
    parser.add_argument(
        "--timestep", type=float, default=plan.timestep, metavar="FS", help="in fs (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=plan.temperature,
        metavar="K",
        help="of the first velocities; from a relaxed structure half of it remains (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=plan.seed, help="of the first velocities (default: %(default)s)")
    parser.add_argument(
        "--every", type=int, default=plan.every, metavar="N", help="steps between two rows (default: %(default)s)"
    )
    parser.add_argument("--relax", action="store_true", help="start from the relaxed structure (L-BFGS)")
    parser.add_argument(
        "--fmax",
        type=float,
        default=_FMAX,
        metavar="F",
        help="largest force of a relaxed structure in eV/Å (default: %(default)s)",
    )
    parser.add_argument(
        "--relax-steps",
        type=int,
        default=_RELAXATION_STEPS,
        metavar="N",
        help="steps of the relaxation at most (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1; by default a GPU where there is one")
    parser.add_argument("--cpu", action="store_true", help="the same as --device cpu")
    parser.add_argument("--out", default="nve", metavar="DIR", help="folder to write to (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Do what ``dens nve`` was asked for."""
    plan = Plan(args.steps, args.timestep, args.temperature, args.seed, args.every)
    _require_possible(plan)
    count(args.relax_steps, "--relax-steps", least=1)
    if not args.fmax > 0:
        raise ValueError(f"--fmax must be above 0, got {args.fmax:g}")
    out = Path(args.out)
    _require_unused(out)
    atoms = read_structure(args.structure)
    require_apart(atoms, args.structure)
    _require_movable(atoms)
    atoms.calc = load_calculator(args.checkpoint, device=args.device, cpu=True if args.cpu else None)
    require_properties(atoms.calc, ["energy", "forces"], what="molecular dynamics")
    out.mkdir(parents=True, exist_ok=True)
    if args.relax:
        done = relax(atoms, fmax=args.fmax, steps=args.relax_steps, quiet=False)
        short = "" if done else f", not yet below {args.fmax:g} eV/Å: see --relax-steps"
        require_apart(atoms, "the relaxed structure")
        print(f"relaxed to {atoms.get_potential_energy():.4f} eV{short}")
    rows = simulate(atoms, plan, trajectory=out / "nve.traj")
    _write_table(out / "nve.csv", rows)
    _draw(rows, len(atoms)).savefig(out / "nve.png", dpi=200, bbox_inches="tight")
    print(f"{len(atoms)} atoms, {plan.steps} steps of {plan.timestep:g} fs: {conservation(rows, len(atoms))}")
    for doubt in [*doubts(rows, atoms, plan), *jumps(atoms, getattr(atoms.calc, "cutoff", None))]:
        print(f"warning: {doubt}")
    print(f"{out}/{', '.join(_FILES)}")


def read_structure(name: str) -> Atoms:
    """The last frame of a file, or the one after its ``@``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ASE cannot read it.
    """
    path = Path(name.partition("@")[0])
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a file with a structure.")
    try:
        found = ase.io.read(name)
    except (StopIteration, IndexError) as error:
        raise ValueError(f"{name} names no frame of the file: frames count from 0, the last is -1.") from error
    except (UnknownFileTypeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{name} cannot be read by ASE ({type(error).__name__}: {error}).") from error
    if not isinstance(found, Atoms):
        raise ValueError(f"{name} names several frames: give one, such as {path}@0.")
    found.calc = None
    return found


def require_apart(atoms: Atoms, where: str) -> None:
    """Raise ValueError for atoms of ``where`` that overlap: no prediction for them means anything."""
    close = overlap(atoms.positions, atoms.cell.array, atoms.pbc)
    if close is not None:
        raise ValueError(f"{where} has {close}; {OVERLAP_REMEDY}")


def _require_possible(plan: Plan) -> None:
    for name, least in (("steps", 1), ("every", 1), ("seed", 0)):
        count(getattr(plan, name), f"--{name}", least=least)
    if not (math.isfinite(plan.timestep) and plan.timestep > 0):
        raise ValueError(f"--timestep must be a finite number above 0, got {plan.timestep:g}")
    if not (math.isfinite(plan.temperature) and plan.temperature >= 0):
        raise ValueError(f"--temperature must be a finite number of at least 0, got {plan.temperature:g}")
    if plan.steps // plan.every + 1 < _LEAST_ROWS:
        raise ValueError(f"{plan.steps} steps with a row every {plan.every} give no line: ask for more, or --every 1")


def _require_movable(atoms: Atoms) -> None:
    if len(atoms) < 2:
        raise ValueError("a single atom has no motion of its own: give a structure of two or more")
    if atoms.get_number_of_degrees_of_freedom() < 1:
        raise ValueError(f"all {len(atoms)} atoms are fixed, and nothing can move: remove constraints of the structure")


def _require_unused(out: Path) -> None:
    require_folder(out, "--out")
    found = [name for name in _FILES if (out / name).exists()]
    if found:
        raise ValueError(f"{out} holds an earlier run ({', '.join(found)}): give another --out, or delete it")


def _tell(optimizer: LBFGS) -> None:
    atoms = optimizer.atoms
    force = np.linalg.norm(atoms.get_forces(), axis=1).max()
    print(f"relaxation, step {optimizer.nsteps}: {atoms.get_potential_energy():.4f} eV, largest force {force:.3g} eV/Å")


def _draw_velocities(atoms: Atoms, plan: Plan) -> None:
    """Maxwell's velocities; a structure that nothing holds neither moves nor, if it is no crystal, turns as a whole."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=plan.temperature, rng=np.random.default_rng(plan.seed))
    if not atoms.constraints:
        Stationary(atoms)
        if not atoms.pbc.any():
            with np.errstate(invalid="ignore"):  # ASE divides by a linear molecule's moment of inertia, which is 0
                ZeroRotation(atoms)


def _advance(dynamics: VelocityVerlet, atoms: Atoms, step: int) -> None:
    remedy = "give a shorter --timestep or a lower --temperature, or start from a structure that the model knows"
    try:
        dynamics.run(1)
    except ValueError as error:
        raise ValueError(f"step {step} failed ({error}): {remedy}") from error
    if not (np.isfinite(atoms.get_potential_energy()) and np.isfinite(atoms.get_forces()).all()):
        raise ValueError(f"energy or forces are NaN or infinite at step {step}: {remedy}")


def _row(atoms: Atoms, time: float) -> tuple[float, ...]:
    potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
    return time, potential, kinetic, potential + kinetic, float(atoms.get_temperature())


def _write_table(path: Path, rows: np.ndarray) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([f"{value:.9g}" for value in row] for row in rows)


def _draw(rows: np.ndarray, natoms: int) -> Figure:
    """Total energy with its line, and the temperature, over time."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained")
        energy, temperature = figure.subplots(2, 1, sharex=True)
        time = rows[:, 0] / _MILLI
        total = _MILLI * (rows[:, 3] - rows[0, 3]) / natoms
        energy.plot(time, total, color="#0072B2", linewidth=0.8)
        energy.plot(time, np.polyval(np.polyfit(time, total, 1), time), "--", color="0.3", linewidth=0.8)
        energy.set_ylabel("Total energy (meV/atom)")
        temperature.plot(time, rows[:, 4], color="#D55E00", linewidth=0.8)
        temperature.set(xlabel="Time (ps)", ylabel="Temperature (K)")
    return figure
