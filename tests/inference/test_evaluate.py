"""`dens evaluate`: errors against the labels of a file, and predictions beside them."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator

from dens_plugin.cli import main
from dens_plugin.data.structures import from_atoms
from dens_plugin.inference import evaluate as module
from dens_plugin.inference.evaluate import errors_of, evaluate, table


class Constant(Calculator):
    """One eV and no forces, whatever the structure."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if len(atoms) == 1:
            raise ValueError("one atom is too few")
        self.results = {"energy": 1.0, "forces": np.zeros((len(atoms), 3))}


def water(energy, force, *, fixed=()):
    atoms = Atoms("OH2", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.full((3, 3), force))
    atoms.set_constraint(ase.constraints.FixAtoms(list(fixed)))
    return atoms


def evaluated(*frames):
    structures = [from_atoms(atoms) for atoms in frames]
    return list(evaluate(iter(structures), Constant(), names=[f"frame {at}" for at in range(len(frames))]))


def test_errors():
    errors = errors_of(evaluated(water(1.3, 0.1), water(0.6, -0.3)))
    assert errors["energy (meV)"].mae == pytest.approx(350)
    assert errors["energy (meV)"].rmse == pytest.approx(1000 * np.sqrt((0.3**2 + 0.4**2) / 2))
    assert errors["energy per atom (meV)"].mae == pytest.approx(350 / 3)
    assert errors["forces (meV/Å)"][:2] == pytest.approx((200, 1000 * np.sqrt((0.1**2 + 0.3**2) / 2)))
    assert errors["forces (meV/Å)"].numbers == 18


def test_fixed_atoms_do_not_count():
    assert errors_of(evaluated(water(1.0, 0.1, fixed=[0, 2])))["forces (meV/Å)"].numbers == 3


def test_nothing_is_said_of_forces_where_all_atoms_are_fixed(recwarn):
    assert list(errors_of(evaluated(water(1.0, 0.1, fixed=[0, 1, 2])))) == ["energy (meV)", "energy per atom (meV)"]
    assert not recwarn.list


def test_no_labels():
    bare = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    assert table(evaluated(bare))[-1] == "There are no labels to compare with."


def test_a_structure_that_cannot_be_computed_is_named():
    with pytest.raises(ValueError, match="frame 1: one atom is too few"):
        evaluated(water(1.0, 0.1), Atoms("O"))


def test_large_errors_stay_apart():
    """Of another reference, say."""
    header, energy, *_ = table(evaluated(water(-4_210_059.4, 0.1)))[1:]
    assert header.split() == ["MAE", "RMSE", "numbers"]
    assert len(energy.removeprefix("energy (meV)").split()) == 3


def test_another_reference_is_noticed(caplog):
    table(evaluated(water(-2000.0, 0.1), water(-2000.2, 0.1)))
    assert "may have other references" in caplog.text


def test_command_writes_predictions_beside_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_calculator", lambda *_, **__: Constant())
    ase.io.write("mine.extxyz", [water(1.3, 0.1, fixed=[1]), water(0.6, -0.3)])
    main(["evaluate", "mine.extxyz", "--checkpoint", "best.pt", "--out", "out/predicted.extxyz"])
    assert "forces (meV/Å)" in capsys.readouterr().out
    first, second = ase.io.read("out/predicted.extxyz", index=":")
    assert first.info["predicted_energy"] == 1.0
    assert first.get_potential_energy() == 1.3
    assert not second.arrays["predicted_forces"].any()
    assert first.constraints[0].index.tolist() == [1]


@pytest.mark.parametrize(
    ("energy", "force", "label"), [(np.nan, 0.1, "energy"), (1.0, np.nan, "forces"), (1.0, np.inf, "forces")]
)
def test_a_label_that_is_not_finite_is_told_before_anything_is_computed(
    tmp_path, monkeypatch, capsys, energy, force, label
):
    monkeypatch.chdir(tmp_path)
    ase.io.write("mine.extxyz", [water(1.3, 0.1), water(energy, force)])
    with pytest.raises(SystemExit):
        main(["evaluate", "mine.extxyz", "--checkpoint", "best.pt"])
    assert f"structure 1 of mine.extxyz has NaN or infinite {label}: remove the frame" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.extxyz"], "none.extxyz does not exist"),
        (["mine.extxyz", "--out", "mine.extxyz"], "'mine.extxyz' exists"),
        (["mine.extxyz", "--out", "mine.extxyz/out.extxyz"], "cannot be made because"),
        (["mine.extxyz", "--cpu", "--device", "cuda"], "contradict each other"),
        (["mine.extxyz", "--max-structures", "0"], "must be at least 1"),
        (["mine.extxyz", "--cpu"], "no checkpoint at 'best.pt'"),
    ],
)
def test_slips(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    ase.io.write("mine.extxyz", [water(1.3, 0.1)])
    with pytest.raises(SystemExit):
        main(["evaluate", *arguments, "--checkpoint", "best.pt"])
    assert message in capsys.readouterr().err


class Energies(Constant):
    """Without forces, as of a model of energies alone."""

    implemented_properties = ("energy",)


def test_a_model_of_energies_alone(tmp_path, monkeypatch, capsys):
    """Its errors are those of energies, and forces are neither compared nor written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_calculator", lambda *_, **__: Energies())
    ase.io.write("mine.extxyz", [water(1.3, 0.1), water(0.6, -0.3)])
    main(["evaluate", "mine.extxyz", "--checkpoint", "best.pt", "--out", "predicted.extxyz"])
    told = capsys.readouterr().out
    assert "energy (meV)" in told
    assert "forces (meV" not in told
    written = ase.io.read("predicted.extxyz")
    assert written.info["predicted_energy"] == 1.0
    assert "predicted_forces" not in written.arrays


def test_a_model_of_other_properties_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calculator = Constant()
    calculator.implemented_properties = ["dipole"]
    monkeypatch.setattr(module, "load_calculator", lambda *_, **__: calculator)
    ase.io.write("mine.extxyz", [water(1.3, 0.1)])
    with pytest.raises(SystemExit):
        main(["evaluate", "mine.extxyz", "--checkpoint", "best.pt"])
    assert "an evaluation needs `energy`, and the model predicts dipole alone" in capsys.readouterr().err
