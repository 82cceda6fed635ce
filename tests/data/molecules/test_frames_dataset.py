"""`format: frames`: files of structures as data sets, with the energies that the model was trained on."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from dens_plugin.data.molecules.dataset import FramesDataset, is_frames_file, with_references
from dens_plugin.data.records import CheckedDataset, Limits
from dens_plugin.data.structures import from_data

REFERENCE = -2000.0  # eV


def frame(number, *, labels=True, **info):
    rng = np.random.default_rng(number)
    atoms = Atoms("OH2", rng.normal(size=(3, 3)) + 3 * np.eye(3), info=info)
    atoms.set_constraint(FixAtoms([1]))
    if labels:
        atoms.calc = SinglePointCalculator(atoms, energy=REFERENCE + number, forces=rng.normal(size=(3, 3)))
    return atoms


@pytest.fixture
def path(tmp_path):
    ase.io.write(tmp_path / "set.extxyz", [frame(number) for number in range(4)])
    return tmp_path / "set.extxyz"


def test_a_record_is_as_in_an_lmdb(path):
    dataset = CheckedDataset(FramesDataset({"src": str(path)}), Limits())
    record = dataset[2]
    assert len(dataset) == 4
    assert record.sid == 2
    assert record.pos.dtype == record.forces.dtype == torch.float32
    assert record.fixed.tolist() == [0, 1, 0]
    assert from_data(record).energy == pytest.approx(REFERENCE + 2)


def test_energies_lack_what_those_of_the_training_data_lack(path):
    dataset = FramesDataset({"src": str(path)})
    with_references(torch.utils.data.Subset(dataset, [0]), lambda numbers: REFERENCE * len(list(numbers)) / 3)
    assert [float(dataset[index].energy) for index in range(4)] == pytest.approx([0, 1, 2, 3])


def test_names_of_the_file_are_kept(tmp_path):
    ase.io.write(tmp_path / "set.extxyz", [frame(0, sid="a"), frame(1, sid="b")])
    records = [FramesDataset({"src": str(tmp_path / "set.extxyz")})[index] for index in range(2)]
    assert [(record.sid, record.fid) for record in records] == [("a", 0), ("b", 1)]


def test_labels_by_other_names_and_units(tmp_path):
    atoms = frame(0, labels=False, REF_energy=1.0)
    atoms.arrays["dft_forces"] = np.ones((3, 3))
    ase.io.write(tmp_path / "set.extxyz", atoms)
    settings = {"units": "kcal/mol", "energy_key": "REF_energy", "forces_key": "dft_forces"}
    record = FramesDataset({"src": str(tmp_path / "set.extxyz"), **settings})[0]
    assert float(record.energy) == pytest.approx(0.0433641, abs=1e-6)
    assert record.forces.max() == pytest.approx(0.0433641, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"energy_key": "REF_enrgy"},
            "energy_key: the first frame of .* has no 'REF_enrgy'; did you mean 'REF_energy'",
        ),
        ({"forces_key": "forces"}, "forces_key: the first frame of .* has no 'forces'; did you mean 'dft_forces'"),
        ({"units": "kcal"}, r"unknown `units` of the data set 'kcal'; did you mean 'kcal/mol'"),
    ],
)
def test_slips_are_named(tmp_path, settings, message):
    atoms = frame(0, labels=False, REF_energy=1.0)
    atoms.arrays["dft_forces"] = np.ones((3, 3))
    ase.io.write(tmp_path / "set.extxyz", atoms)
    with pytest.raises(ValueError, match=message):
        FramesDataset({"src": str(tmp_path / "set.extxyz"), **settings})


def test_plain_xyz_needs_units(tmp_path):
    (tmp_path / "set.xyz").write_text("1\n-0.5\nH 0 0 0 0 0 0\n")
    with pytest.raises(ValueError, match="does not say in which units it is: give `units` of the data set; MD17"):
        FramesDataset({"src": str(tmp_path / "set.xyz")})


def test_frames_without_labels_can_be_predicted(tmp_path):
    ase.io.write(tmp_path / "set.extxyz", frame(0, labels=False))
    record = FramesDataset({"src": str(tmp_path / "set.extxyz")})[0]
    assert "energy" not in record
    assert "forces" not in record


@pytest.mark.parametrize(
    ("name", "known"),
    [("a.extxyz.xz", True), ("A.XYZ", True), ("b.v2.xyz", True), ("c.npz", True), ("d.lmdb", False), ("e", False)],
)
def test_known_by_its_name(name, known):
    assert is_frames_file(name) == known
    assert not is_frames_file([name])


def test_several_files_are_refused(path):
    with pytest.raises(ValueError, match=r"`format: frames` reads one file, got 2"):
        FramesDataset({"src": [str(path), str(path)]})
