"""Both forms of eSEN from training to a calculator, by the trainer that users name."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from fairchem.core import OCPCalculator
from fairchem.core.common import distutils
from fairchem.core.models.base import HydraModel
from samples import base_config, trainer_arguments, write_lmdb
from test_esen import SMALL
from torch_geometric.data import Batch, Data

import dens_plugin
from dens_plugin.training.history import FILE_NAME, read_history

BACKBONE = {
    "model": "dens_plugin.ESENDeNS",
    **SMALL,
    "cutoff": 3.5,
}
SCALE = 2.0  # eV and eV/Å, one for both: forces are gradients of the normalised energy
HEADS = {
    "direct": {"energy": {"module": "dens_plugin.ESENEnergyHead"}, "forces": {"module": "dens_plugin.ESENForceHead"}},
    "gradient": {"energy": {"module": "dens_plugin.ESENGradientHead"}},
}


def rattled_copper(seed):
    """Four atoms of copper, moved at random, as ASE's effective medium theory sees them."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    return atoms


def structure(atoms, sid):
    return Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float),
        cell=torch.tensor(atoms.cell.array, dtype=torch.float)[None],
        atomic_numbers=torch.tensor(atoms.numbers),
        natoms=len(atoms),
        fixed=torch.zeros(len(atoms), dtype=torch.int),
        tags=torch.ones(len(atoms), dtype=torch.long),
        energy=atoms.get_potential_energy(),
        forces=torch.tensor(atoms.get_forces(), dtype=torch.float),
        sid=sid,
        fid=0,
    )


def build(root, form, **changes):
    """A trainer of one form on data of its own; ``changes`` are of the config."""
    structures = [structure(rattled_copper(seed), seed) for seed in range(16)]
    write_lmdb(root / "train", structures[:12])
    write_lmdb(root / "val", structures[12:])
    config = base_config(root)
    config["dataset"]["train"]["transforms"]["normalizer"] = {
        name: {"mean": 0.0, "stdev": SCALE} for name in ("energy", "forces")
    }
    config["loss_functions"][1]["forces"]["coefficient"] = 10
    config["optim"] |= {"max_epochs": 12, "lr_initial": 5e-3, "batch_size": 3, "eval_every": 16, "ema_decay": 0.8}
    config["model"] = {
        "name": "hydra",
        "otf_graph": True,
        "pass_through_head_outputs": True,
        "backbone": copy.deepcopy(BACKBONE),
        "heads": {**copy.deepcopy(HEADS[form]), "noise": {"module": "dens_plugin.ESENNoiseHead"}},
    }
    config["task"]["objective"] = {"name": "dens", "prob": 0.5, "sigma": 0.05}
    for block, values in changes.items():
        config[block] |= values
    distutils.setup_env_local()
    return dens_plugin.DeNSTrainer(**trainer_arguments(config, run_dir=root))


@pytest.fixture(scope="module", params=list(HEADS))
def run(request, tmp_path_factory):
    """A trainer after some epochs."""
    trainer = build(tmp_path_factory.mktemp(request.param), request.param)
    trainer.train(disable_eval_tqdm=True)
    return trainer


def folder(trainer):
    return Path(trainer.config["cmd"]["checkpoint_dir"])


def best(trainer):
    return str(folder(trainer) / "best_checkpoint.pt")


def test_loss_goes_down_and_validation_is_finite(run):
    """Validation runs under `torch.no_grad`, which the gradient form must lift for its forces."""
    rows = read_history(folder(run) / FILE_NAME)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    first, last = losses[: len(run.train_loader)], losses[-len(run.train_loader) :]
    assert np.mean(last) < 0.7 * np.mean(first)
    errors = [row["forces_mae"] for row in rows if row["split"] == "val"]
    assert len(errors) == 3
    assert errors[-1] < errors[0]


def fairchems(path, cpu):
    return OCPCalculator(checkpoint_path=path, cpu=cpu, seed=0)


@pytest.mark.parametrize("load", [dens_plugin.load_calculator, fairchems], ids=["ours", "fairchem"])
def test_checkpoint_becomes_a_calculator(run, load):
    """With the numbers of a model that is built and loaded by hand, in eV and eV/Å."""
    path = best(run)
    atoms = rattled_copper(99)
    atoms.calc = load(path, cpu=True)
    model = HydraModel(**{key: value for key, value in run.config["model"].items() if key != "name"}).eval()
    model.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
    expected = model(Batch.from_data_list([structure(atoms, 99)]))
    assert atoms.get_potential_energy() == pytest.approx(SCALE * expected["energy"].item(), abs=1e-5)
    assert np.allclose(atoms.get_forces(), SCALE * expected["forces"].detach(), atol=1e-4)


def test_forces_of_the_calculator_are_gradients_in_electronvolt(run):
    """Of the gradient form; those of the direct form, after these few steps, are not."""
    atoms = rattled_copper(99)
    atoms.calc = dens_plugin.load_calculator(best(run), cpu=True)
    forces = atoms.get_forces()
    numerical = atoms.calc.calculate_numerical_forces(atoms, d=1e-2)
    agree = np.allclose(forces, numerical, atol=2e-2 * np.abs(forces).max())
    assert agree == (run.config["model"]["heads"]["energy"]["module"] == "dens_plugin.ESENGradientHead")


def test_gradients_start_from_a_direct_run(tmp_path):
    """The two stages of arXiv:2502.12147: all weights but those of the direct force head, which there is none for."""
    first = build(tmp_path / "direct", "direct")
    path = first.save(checkpoint_file="direct.pt")
    second = build(tmp_path / "gradient", "gradient", task={"warm_start": path})
    expected = first.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in second.model.state_dict().items())


def test_gradients_need_one_scale(tmp_path):
    """Forces in units of another energy would be the gradient of nothing."""
    normalizer = {"energy": {"mean": 0.0, "stdev": 3.0}, "forces": {"mean": 0.0, "stdev": 2.0}}
    train = {"format": "lmdb", "src": str(tmp_path / "train"), "transforms": {"normalizer": normalizer}}
    with pytest.raises(ValueError, match="one `stdev`"):
        build(tmp_path, "gradient", dataset={"train": train})
