"""Evaluating a file of frames without data sets made of it."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from samples import write_lmdb

from dens_plugin.checks.dataset import require_files
from dens_plugin.data.molecules.dataset import FramesDataset, with_references
from dens_plugin.data.molecules.manifest import FILE_NAME, ORIGIN, origin_of

REFERENCE = -2000.0  # eV


def frame(number):
    rng = np.random.default_rng(number)
    atoms = Atoms("OH2", rng.normal(size=(3, 3)) + 3 * np.eye(3), cell=[12, 12, 12], pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=REFERENCE + number, forces=rng.normal(size=(3, 3)))
    return atoms


@pytest.mark.parametrize("pads", [False, True])  # which reads frames before anybody knows the reference
def test_a_validation_of_a_file_is_that_of_its_data_set(config, build, tmp_path, pads):
    """The same errors, from an LMDB whose energies lack the reference and from the file that has them whole."""
    ase.io.write(tmp_path / "whole.extxyz", [frame(number) for number in range(4)])
    dataset = FramesDataset({"src": str(tmp_path / "whole.extxyz")})
    with_references(dataset, lambda numbers: REFERENCE)
    (tmp_path / "made").mkdir()
    for split in ("train", "val"):
        write_lmdb(tmp_path / "made" / split, [dataset[index] for index in range(4)])
    (tmp_path / "made" / FILE_NAME).write_text(
        '{"formula": "H2O", "elements": ["H", "O"], "reference_energy_ev": -2000.0}'
    )
    config["optim"] |= {"pad": pads}
    config["dataset"]["train"]["src"] = str(tmp_path / "made" / "train")
    config["dataset"]["train"]["transforms"]["normalizer"]["energy"]["mean"] = 0.0
    found = []
    for block in ({"src": str(tmp_path / "made" / "val")}, {"src": str(tmp_path / "whole.extxyz"), "format": "frames"}):
        config["dataset"]["val"] = block
        require_files(block, "val")
        trainer = build(config)  # on copies of the folders, which lack the manifest
        trainer.config[ORIGIN] = origin_of(tmp_path / "made" / "train")._asdict()
        found.append(trainer.validate(disable_tqdm=True)["energy_mae"]["metric"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_file_is_read_once_for_all_evaluations(config, build, tmp_path, monkeypatch):
    """Clean and corrupted; and anew where the references have changed, as with another checkpoint."""
    ase.io.write(tmp_path / "whole.extxyz", [frame(number) for number in range(4)])
    config["dataset"]["val"] = {"src": str(tmp_path / "whole.extxyz"), "format": "frames"}
    read, seen = FramesDataset.__getitem__, []
    monkeypatch.setattr(FramesDataset, "__getitem__", lambda self, idx: seen.append(int(idx)) or read(self, idx))
    trainer = build(config)
    trainer.validate(disable_tqdm=True)
    seen.clear()
    first = trainer.validate(disable_tqdm=True)["energy_mae"]["metric"]
    assert seen == []
    origin = {"formula": "H2O", "elements": ("H", "O"), "reference": REFERENCE}
    trainer.config[ORIGIN] = origin
    assert trainer.validate(disable_tqdm=True)["energy_mae"]["metric"] < first / 10
    assert sorted(seen) == sorted([*range(4)] * 2)
