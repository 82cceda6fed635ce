"""`dens nve`: what conserves energy is told from what does not, and runs repeat."""

from __future__ import annotations

import argparse
import csv

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list

from dens_plugin.inference import dynamics
from dens_plugin.inference.cutoff_jump import jump_at_cutoff
from dens_plugin.inference.dynamics import Plan, conservation, doubts, jumps, read_structure, relax, simulate

SHORT = Plan(steps=400, timestep=1.0, temperature=300, seed=1, every=2)


class Spring(Calculator):
    """Two atoms on a harmonic spring; ``swirl`` (eV/Å²) adds forces that no energy has, ``fails_at`` NaN in a call."""

    implemented_properties = ("energy", "forces")

    def __init__(self, *, stiffness=20.0, rest=1.0, swirl=0.0, fails_at=None):
        super().__init__()
        self.stiffness, self.rest, self.swirl, self.fails_at = stiffness, rest, swirl, fails_at
        self.calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        vector = self.atoms.positions[1] - self.atoms.positions[0]
        length = np.linalg.norm(vector)
        force = self.stiffness * (length - self.rest) * vector / length
        around = self.swirl * np.cross([0, 0, 1], vector)
        energy = 0.5 * self.stiffness * (length - self.rest) ** 2
        energy = np.nan if self.calls == self.fails_at else energy
        self.results = {"energy": energy, "forces": np.array([force - around, around - force])}


def dimer(**options):
    atoms = Atoms("N2", positions=[[0, 0, 0], [1.05, 0, 0]])
    atoms.calc = Spring(**options)
    return atoms


def test_a_gradient_conserves_energy():
    found = conservation(simulate(dimer(), SHORT), 2)
    assert abs(found.drift) < 0.5  # meV/atom/ps; kinetic and potential energy are tens of meV
    assert 0 < found.fluctuation < 1


def test_forces_without_energy_drift():
    found = conservation(simulate(dimer(swirl=0.05), SHORT), 2)
    assert found.drift > 20


def test_fluctuation_is_of_the_steps_square():
    """Velocity Verlet: twice the step, four times the fluctuation."""
    coarse, fine = (
        conservation(simulate(dimer(), SHORT._replace(timestep=step, steps=int(400 / step), every=1)), 2)
        for step in (1.0, 0.5)
    )
    assert coarse.fluctuation / fine.fluctuation == pytest.approx(4, rel=0.1)


def test_the_fit_is_of_total_energy_in_the_units_it_says():
    time = np.linspace(0, 2000, 101)  # fs
    wave = 0.004 * np.sin(np.linspace(0, 40 * np.pi, 101))
    total = -5000 + 0.010 * time / 1000 + wave
    rows = np.stack([time, total - 1, np.ones(101), total, np.full(101, 250.0)], axis=1)
    found = conservation(rows, 4)
    assert found.drift == pytest.approx(10 / 4, rel=0.05)
    assert found.fluctuation == pytest.approx(4 / np.sqrt(2) / 4, rel=0.02)
    assert found.temperature == 250


def test_same_seed_same_run():
    runs = [simulate(dimer(), SHORT._replace(seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    np.testing.assert_allclose(runs[0][:, 3], runs[0][:, 1] + runs[0][:, 2])
    assert runs[0].shape == (201, 5)
    assert runs[0][-1, 0] == 400


def test_a_free_structure_neither_moves_nor_turns():
    atoms = dimer()
    simulate(atoms, SHORT)
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-9)


def test_fixed_atoms_stay():
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = EMT()
    before = atoms.positions[0].copy()
    simulate(atoms, Plan(steps=20, timestep=2.0, every=5))
    np.testing.assert_array_equal(atoms.positions[0], before)


def test_nothing_moves_where_all_atoms_are_fixed(tmp_path):
    """Told before a checkpoint is looked for; a temperature of no motion would be NaN."""
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms(range(4)))
    with pytest.raises(ValueError, match="all 4 atoms are fixed, and nothing can move"):
        simulate(atoms, SHORT)
    ase.io.write(tmp_path / "fixed.traj", atoms)
    with pytest.raises(ValueError, match="all 4 atoms are fixed"):
        run("none.pt", tmp_path / "fixed.traj", "--out", tmp_path / "out")


def test_nan_stops_with_its_step():
    with pytest.raises(ValueError, match=r"NaN or infinite at step 5: give a shorter --timestep"):
        simulate(dimer(fails_at=6), SHORT)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"timestep": -1.0},
        {"timestep": float("nan")},
        {"timestep": float("inf")},
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"every": 0},
        {"seed": -1},
    ],
)
def test_impossible_plans(change):
    with pytest.raises(ValueError, match=r"^--[a-z]+ must be a "):
        simulate(dimer(), SHORT._replace(**change))


def test_too_few_rows_for_a_line():
    with pytest.raises(ValueError, match="give no line"):
        simulate(dimer(), Plan(steps=10, every=10))


def test_a_single_atom():
    atoms = Atoms("N", positions=[[0, 0, 0]])
    atoms.calc = EMT()
    with pytest.raises(ValueError, match="a single atom has no motion of its own"):
        simulate(atoms, SHORT)


def test_a_run_that_went_away_is_doubted():
    atoms = dimer()
    assert list(doubts(simulate(atoms, SHORT), atoms, SHORT)) == []
    atoms, hot = dimer(stiffness=0.001), SHORT._replace(temperature=30_000)
    (doubt,) = doubts(simulate(atoms, hot), atoms, hot)
    assert "no neighbour within 5 Å at the end" in doubt
    atoms = dimer(swirl=5.0)
    assert next(doubts(simulate(atoms, SHORT), atoms, SHORT)).startswith("the temperature went up to ")


def test_relaxation():
    atoms = dimer()
    assert relax(atoms)
    assert atoms.get_distance(0, 1) == pytest.approx(1, abs=1e-3)
    assert not relax(dimer(), fmax=1e-12, steps=1)


def run(*arguments):
    parser = argparse.ArgumentParser()
    dynamics.add_arguments(parser)
    dynamics.run(parser.parse_args(list(map(str, arguments))))


@pytest.fixture
def structure(tmp_path):
    ase.io.write(tmp_path / "n2.xyz", [Atoms("N2", positions=[[0, 0, 0], [x, 0, 0]]) for x in (1.3, 1.05)])
    return tmp_path / "n2.xyz"


def test_command(structure, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dynamics, "load_calculator", lambda path, **_: Spring())
    run("best.pt", structure, "--steps", 200, "--timestep", 1, "--out", tmp_path / "nve", "--relax", "--seed", 3)
    out = capsys.readouterr().out
    assert "relaxation, step 0: 0.0250 eV, largest force 1 eV/Å" in out
    assert "relaxed to 0.0000 eV" in out
    assert "warning" not in out
    assert "2 atoms, 200 steps of 1 fs: drift " in out
    with open(tmp_path / "nve" / "nve.csv") as file:
        rows = list(csv.DictReader(file))
    frames = ase.io.read(tmp_path / "nve" / "nve.traj", ":")
    assert len(rows) == len(frames) == 21
    assert float(rows[-1]["time_fs"]) == 200
    for row, atoms in zip(rows, frames, strict=True):
        assert float(row["potential_ev"]) == pytest.approx(atoms.get_potential_energy())
        assert float(row["kinetic_ev"]) == pytest.approx(atoms.get_kinetic_energy())
    speed = np.linalg.norm(frames[0].get_velocities(), axis=1) / (units.Ang / units.fs)
    assert 0 < speed.max() < 0.1
    assert (tmp_path / "nve" / "nve.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"holds an earlier run \(nve.traj, nve.csv, nve.png\): give another"):
        run("best.pt", structure, "--out", tmp_path / "nve")
    with pytest.raises(ValueError, match="--fmax must be above 0, got 0"):
        run("best.pt", structure, "--out", tmp_path / "other", "--relax", "--fmax", 0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", -4, "must be a whole number of at least 1, got -4"),
        ("every", 0, "must be a whole number of at least 1, got 0"),
        ("seed", -1, "must be a whole number of at least 0, got -1"),
        ("relax-steps", 0, "must be a whole number of at least 1, got 0"),
        ("timestep", "nan", "must be a finite number above 0, got nan"),
        ("temperature", -1, "must be a finite number of at least 0, got -1"),
    ],
)
def test_impossible_numbers_are_told_by_their_option(structure, option, value, message):
    with pytest.raises(ValueError, match=f"^--{option} {message}$"):
        run("best.pt", structure, f"--{option}={value}")


def test_structure_files(structure, tmp_path):
    assert read_structure(str(structure)).get_distance(0, 1) == pytest.approx(1.05)
    assert read_structure(f"{structure}@0").get_distance(0, 1) == pytest.approx(1.3)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_structure(str(tmp_path / "missing.xyz"))
    with pytest.raises(ValueError, match=r"n2.xyz@999 names no frame of the file: frames count from 0"):
        read_structure(f"{structure}@999")
    with pytest.raises(ValueError, match="names several frames"):
        read_structure(f"{structure}@:")
    (tmp_path / "text.xyz").write_text("no structure")
    with pytest.raises(ValueError, match="cannot be read by ASE"):
        read_structure(str(tmp_path / "text.xyz"))


def test_nothing_is_written_where_there_is_no_checkpoint(structure, tmp_path):
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "missing.pt", structure, "--out", tmp_path / "nve")
    assert not (tmp_path / "nve").exists()


class Cut(Calculator):
    """Pairs attract each other up to a cutoff, where their energy is `left` eV, and its derivative the force."""

    implemented_properties = ("energy", "forces")

    def __init__(self, left, cutoff=3.0):
        super().__init__()
        self.left, self.cutoff = left, cutoff

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces = 0.0, np.zeros((len(atoms), 3))
        for i, j, vector, distance in zip(*neighbor_list("ijDd", atoms, self.cutoff), strict=True):
            if i < j:
                energy += self.left - (self.cutoff - distance) ** 2
                pull = 2 * (self.cutoff - distance) * vector / distance
                forces[i] += pull
                forces[j] -= pull
        self.results = {"energy": energy, "forces": forces}


@pytest.mark.parametrize("left", [0.0, -0.018])
def test_a_jump_at_the_cutoff_is_told(left):
    """It is the energy that is left there; smooth pairs have none."""
    atoms = Atoms("H3", positions=[[0, 0, 0], [2.4, 0, 0], [0, 1.0, 0]])
    atoms.calc = Cut(left)
    before = atoms.positions.copy()
    assert jump_at_cutoff(atoms, 3.0).energy == pytest.approx(-left, abs=1e-5)
    told = list(jumps(atoms, 3.0))
    assert len(told) == (left != 0)
    assert not told or "the energy jumps by +18 meV when atoms 1 and 2 pass the model's cutoff of 3 Å" in told[0]
    assert np.array_equal(atoms.positions, before)


def test_a_molecule_within_the_cutoff_has_no_jump():
    atoms = Atoms("H2", positions=[[0, 0, 0], [1.0, 0, 0]])
    atoms.calc = Cut(-1.0)
    assert jump_at_cutoff(atoms, 3.0) is None
    assert list(jumps(atoms, None)) == []
