"""A model trained on molecules in ASE: energies, elements and periodicity."""

from __future__ import annotations

import gc
import json
import logging
import random
import shutil

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import graphene, mx2, nanotube
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.common import distutils
from samples import base_config, trainer_arguments

from dens_plugin import load_calculator
from dens_plugin.cli import main
from dens_plugin.data.molecules.conversion import Options, convert
from dens_plugin.data.molecules.split import Sizes
from dens_plugin.inference.dynamics import Plan, relax, simulate
from dens_plugin.relaxation.result import load_relaxations
from dens_plugin.testing import default_dtype
from dens_plugin.training.trainer import DeNSTrainer

TOTAL = -2079.0  # eV
REST = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])  # Å
NETWORK = {
    "name": "hydra",
    "pass_through_head_outputs": True,
    "backbone": {
        "model": "equiformer_plugin_backbone",
        "channels": [4, 2],
        "num_layers": 1,
        "num_heads": 1,
        "head_channels": [2, 1],
        "ffn_channels": [4, 2],
        "feature_channels": [4, 2],
        "num_radial_basis": 4,
        "radial_channels": [4],
    },
    "heads": {"energy": {"module": "equiformer_gradient_head"}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two steps on water, shorter than its `eval_every`."""
    root = tmp_path_factory.mktemp("water")
    frames, rng = [], np.random.default_rng(0)
    for _ in range(6):
        atoms = Atoms("OH2", positions=REST + rng.normal(scale=0.03, size=(3, 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=TOTAL + rng.normal(), forces=rng.normal(size=(3, 3)))
        frames.append(atoms)
    ase.io.write(root / "water.extxyz", frames)
    convert(root / "water.extxyz", root / "data", Options(Sizes(4, 2)), progress=False)
    distutils.setup_env_local()
    config = base_config(root / "data") | {"model": NETWORK, "task": {"objective": {"name": "s2ef"}}}
    config["optim"]["eval_every"] = 400
    trainer = DeNSTrainer(**trainer_arguments(config, run_dir=root, identifier="water"))
    trainer.train(disable_eval_tqdm=True)
    folder = trainer._folder
    del trainer
    gc.collect()  # closes the data, which may be open only once in a process
    return folder


def test_files_of_predictions_and_relaxations_have_the_calculators_energies(run, calculator, tmp_path):
    """In double precision, with what was added to those of the data set."""
    source = shutil.copytree(run.parents[1] / "data" / "val", tmp_path / "val")  # LMDB opens a file once per process
    for mode in ("predict", "relax"):
        shutil.copytree(source, tmp_path / mode)
    config = torch.load(run / "best_checkpoint.pt", weights_only=False)["config"]
    config = base_config(run.parents[1] / "data") | {"model": NETWORK, "task": config["task"]}
    config["task"] |= {"relax": {"steps": 0, "out": str(tmp_path / "relaxed"), "trajectory": "ends"}}
    train = {key: value for key, value in config["dataset"]["train"].items() if key != "src"}
    config["dataset"] = {
        "train": train,
        "test": {"src": str(tmp_path / "predict")},
        "relax": {"src": str(tmp_path / "relax")},
    }
    trainer = DeNSTrainer(**trainer_arguments(config, run_dir=tmp_path, identifier="water"))
    trainer.load_checkpoint(str(run / "best_checkpoint.pt"))
    trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
    with np.load(next(tmp_path.rglob("ocp_predictions.npz"))) as found:
        energies = dict(zip(found["ids"].tolist(), found["energy"], strict=True))
        assert found["energy"].dtype == np.float64
        assert found["energy_reference"] == pytest.approx(TOTAL, abs=5)
    trainer.run_relaxations()
    relaxed = load_relaxations(tmp_path / "relaxed" / "relaxed.npz")
    for structure in (trainer.test_dataset[index] for index in range(2)):
        atoms = Atoms(structure.atomic_numbers.numpy(), positions=structure.pos.numpy())
        atoms.calc = calculator
        name = f"{structure.sid}_{structure.fid}"
        assert energies[name] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        (place,) = np.flatnonzero(np.isin(relaxed.ids, [name, str(structure.sid)]))
        assert relaxed.energy_initial[place] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)


@pytest.fixture(scope="module")
def calculator(run):
    return load_calculator(run / "best_checkpoint.pt", cpu=True)


def test_a_short_run_is_validated_at_its_end(run):
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["split"] == "val"]
    assert row["step"] == 2
    assert "weights" not in row  # as in a validation of its own


def test_energies_are_those_of_the_data(calculator):
    """Of the training frames' composition; two molecules apart have twice the energy of one."""
    water = Atoms("H2O", positions=REST[[1, 2, 0]])
    water.calc = calculator
    energy = water.get_potential_energy()
    assert energy == pytest.approx(TOTAL, abs=20)
    far = water.copy()
    far.translate([50, 0, 0])
    two = water + far
    two.calc = calculator
    assert two.get_potential_energy() == pytest.approx(2 * energy, abs=1e-2)


def test_energies_without_a_reference_are_told_once_with_both_formulas(calculator, caplog):
    for _ in range(2):
        pair = Atoms("OH", positions=REST[:2])
        pair.calc = calculator
        assert abs(pair.get_potential_energy()) < 20
    assert caplog.text.count("Energies of HO are off by a constant: the model was trained on H2O") == 1


def test_unseen_elements_are_named_once(calculator, caplog):
    for _ in range(2):
        atoms = Atoms("OCl", positions=1.2 * REST[:2])
        atoms.calc = calculator
        atoms.get_potential_energy()
    assert caplog.text.count("trained on H, O and never saw Cl") == 1


def test_crystals_are_refused(calculator):
    atoms = Atoms("OH2", positions=REST, cell=[5, 5, 5], pbc=True)
    atoms.calc = calculator
    with pytest.raises(ValueError, match=r"periodic and the model takes all for molecules"):
        atoms.get_potential_energy()


@pytest.fixture
def periodic(run):
    """A calculator whose model looks across the faces of cells."""
    found = load_calculator(run / "best_checkpoint.pt", cpu=True)
    for module in found.trainer.model.modules():
        if hasattr(module, "use_pbc"):
            module.use_pbc = True
    return found


@pytest.mark.parametrize("sheet", [graphene(), mx2("BeF2"), nanotube(4, 0)], ids=["graphene", "mx2", "nanotube"])
def test_zero_vectors_along_open_directions_are_as_vacuum(periodic, sheet):
    """In the calculator, and so in relaxations and dynamics with it."""
    wide = sheet.copy()
    wide.center(vacuum=15.0, axis=np.flatnonzero(~sheet.pbc))
    sheet.calc = wide.calc = periodic
    sheet.rattle(0.05, seed=1)
    wide.rattle(0.05, seed=1)
    assert sheet.get_potential_energy() == pytest.approx(wide.get_potential_energy(), abs=1e-4)
    assert sheet.get_forces() == pytest.approx(wide.get_forces(), abs=1e-4)
    relax(sheet, steps=2)
    rows = simulate(sheet, Plan(steps=4, timestep=0.1, every=1))
    assert np.isfinite(rows).all()


def test_flat_crystals_are_refused(periodic):
    sheet = graphene()
    sheet.pbc = True
    sheet.calc = periodic
    with pytest.raises(ValueError, match=r"cell has no volume: give it one, or set pbc to False along vectors"):
        sheet.get_potential_energy()


def global_state():
    root = logging.getLogger()
    return (
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        (root.level, list(root.handlers), logging.root.manager.disable),
    )


def test_the_process_stays_as_it_is(run):
    """Two Langevin runs from one seed each were bit for bit the same, whatever was drawn before."""
    torch.manual_seed(7)
    before = global_state()
    atoms = Atoms("OH2", positions=REST)
    atoms.calc = load_calculator(run / "best_checkpoint.pt", device="cpu")
    atoms.get_forces()
    assert global_state() == before


def test_scripts_in_double_precision(run, calculator):
    """The model is built, and computes, in float32."""
    atoms = Atoms("OH2", positions=REST)
    atoms.calc = calculator
    expected = atoms.get_forces()
    with default_dtype(torch.float64):
        atoms.calc = load_calculator(run / "best_checkpoint.pt", device="cpu")
        assert atoms.get_forces() == pytest.approx(expected, abs=1e-6)
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'; give 'cpu', 'cuda' or"),
        ({"device": "cuda:99"}, "there is no 'cuda:99' here"),
        ({"device": "cuda", "cpu": True}, "contradict each other"),
    ],
)
def test_devices_that_do_not_exist(run, options, message):
    with pytest.raises(ValueError, match=message):
        load_calculator(run / "best_checkpoint.pt", **options)


def test_atoms_at_one_place_are_refused(calculator):
    """They have no edge and no force, so that a relaxation would be content."""
    atoms = Atoms("OH2H", positions=[*REST, REST[1]])
    atoms.calc = calculator
    with pytest.raises(ValueError, match=r"atoms 1 and 3 at one place .*remove them, or check cell, pbc and"):
        atoms.get_forces()


def test_overlapping_atoms_are_told_once(run, caplog):
    calculator = load_calculator(run / "best_checkpoint.pt", device="cpu")
    for shift in (0.1, 0.2):
        atoms = Atoms("OH2H", positions=[*REST, REST[1] + shift])
        atoms.calc = calculator
        atoms.get_forces()
    assert caplog.text.count("There are atoms 1 and 3 0.17 Å apart (less than 0.4 Å): predictions for that") == 1


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_nve_does_not_call_overlapping_atoms_relaxed(run, tmp_path, shift, capsys):
    ase.io.write(tmp_path / "start.xyz", Atoms("OH2H", positions=[*REST, REST[1] + shift]))
    arguments = ["nve", str(run / "best_checkpoint.pt"), str(tmp_path / "start.xyz"), "--relax", "--cpu"]
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "nve")])
    told = capsys.readouterr()
    assert "atoms 1 and 3" in told.err
    assert "relaxed" not in told.out
