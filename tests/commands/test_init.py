"""`dens init` writes configs that can be trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from fairchem.core.common.utils import load_config
from samples import write_lmdb

from dens_plugin.checks.schema import require_known_keys
from dens_plugin.cli import main
from dens_plugin.commands.init import models
from dens_plugin.compat import prepare_host
from dens_plugin.config_files import packaged_folder
from dens_plugin.testing import random_structure


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    structures = [random_structure(5, seed=index, sid=index) for index in range(6)]
    write_lmdb(tmp_path / "mine" / "train", structures[:4])
    write_lmdb(tmp_path / "mine" / "val", structures[4:])
    (tmp_path / "mine.yml").touch()
    return tmp_path


WITH_DENS = [model for model in models() if (packaged_folder() / "model" / f"{model}_dens.yml").exists()]


@pytest.mark.parametrize("model", WITH_DENS)
def test_config_of_every_model(workplace, model):
    main(["init", "mine", "--model", model, "--out", "c.yml"])
    prepare_host()
    config, _, conflicts = load_config(workplace / "c.yml")
    assert not conflicts
    require_known_keys(config)
    assert config["task"]["objective"]["name"] == "dens"
    assert config["dataset"]["val"]["src"] == "mine/val"
    assert config["dataset"]["train"]["transforms"]["normalizer"]["energy"]["stdev"] > 0


def test_data_of_one_energy_get_a_scale(workplace):
    for split in ("train", "val"):
        structures = [random_structure(5, seed=index, sid=index) for index in range(4)]
        for structure in structures:
            structure.energy = 0.1 + 0.2
        write_lmdb(workplace / "equal" / split, structures)
    main(["init", "equal", "--out", "c.yml"])
    scales = yaml.safe_load((workplace / "c.yml").read_text())["dataset"]["train"]["transforms"]["normalizer"]
    assert scales["energy"] == {"mean": 0.3, "stdev": 1.0}


def test_files_of_molecules(workplace):
    for target in ("energy", "forces"):
        np.savez(workplace / "mine" / f"normalizer_{target}.npz", mean=0.0, std=1.0)
    main(["init", "mine", "--model", "equiformer", "--objective", "s2ef"])
    config = yaml.safe_load((workplace / "config.yml").read_text())
    assert config["includes"] == [
        "base_molecules.yml",
        "model/equiformer.yml",
        "backbone/equiformer_mini_molecule.yml",
        "objective/s2ef.yml",
        "schedule/md17_mini.yml",
    ]
    assert config["dataset"]["train"]["transforms"]["normalizer"]["energy"]["file"] == "mine/normalizer_energy.npz"


def test_parts_are_those_of_an_experiment_with_the_model(workplace):
    for target in ("energy", "forces"):
        np.savez(workplace / "mine" / f"normalizer_{target}.npz", mean=0.0, std=1.0)
    main(["init", "mine", "--model", "painn", "--schedule", "demo"])
    config = yaml.safe_load((workplace / "config.yml").read_text())
    assert config["includes"] == [
        "base_molecules.yml",
        "model/painn_dens.yml",
        "backbone/painn_molecule.yml",
        "objective/dens_molecule.yml",
        "schedule/demo.yml",
    ]


@pytest.mark.parametrize(
    ("model", "periodic", "told"), [("painn", True, True), ("painn", False, False), ("esen", True, False)]
)
def test_periodic_data_for_a_network_of_molecules(workplace, model, periodic, told):
    """Those that look across the faces of cells by themselves need not be told."""
    structures = [random_structure(5, seed=index, sid=index) for index in range(6)]
    for structure in structures:
        structure.pbc = torch.full((1, 3), periodic)
    write_lmdb(workplace / "own" / "train", structures[:4])
    write_lmdb(workplace / "own" / "val", structures[4:])
    main(["init", "own", "--model", model, "--out", "own.yml"])
    backbone = yaml.safe_load((workplace / "own.yml").read_text()).get("model", {}).get("backbone", {})
    assert backbone == ({"use_pbc": True} if told else {})


def test_data_without_forces(workplace, capsys):
    structures = [random_structure(5, seed=index, sid=index) for index in range(6)]
    for structure in structures:
        del structure.forces
    write_lmdb(workplace / "own" / "train", structures[:4])
    write_lmdb(workplace / "own" / "val", structures[4:])
    with pytest.raises(SystemExit):
        main(["init", "own"])
    assert "has no forces, which these configs train on: for energies alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        (["mine", "--model", "equiformer_v3"], "did you mean 'equiformer_v2'?"),
        (["mine", "--backbone", "equiformer_v2_83"], "'equiformer_v2_83'; did you mean 'equiformer_v2_83m'?"),
        (["mine/train"], "has no folder train"),
        (["mine", "--model", "eqn"], "unknown --model 'eqn'"),
        (["mine", "--model", "escn", "--objective", "ndem"], "no config of 'escn' for the objective 'ndem'"),
        (["mine", "--model", "schnet"], "for the objective 'dens': give --objective, one of pretrain"),
        (["mine", "--model", "painn", "--backbone", "foo"], "'foo'; allowed are painn_mini, painn_molecule"),
        (["mine", "--model", "painn", "--backbone", "egnn"], "unknown --backbone of painn 'egnn'; allowed are painn_"),
        (["mine", "--schedule", "mimi"], "unknown --schedule 'mimi'; did you mean 'mini'?"),
        (["mine", "--objective", "s2f"], "unknown --objective 's2f'; did you mean 's2ef'?"),
        (["mine", "--out", "mine.yml/c.yml"], "mine.yml/c.yml cannot be made because"),
    ],
)
def test_slips(workplace, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["init", *arguments])
    assert message in capsys.readouterr().err
    assert not (workplace / "config.yml").exists()


def test_makes_the_folder_of_the_file(workplace):
    main(["init", "mine", "--out", "new/c.yml"])
    assert (workplace / "new" / "c.yml").is_file()


def test_overwrites_nothing(workplace, capsys):
    (workplace / "config.yml").write_text("mine")
    with pytest.raises(SystemExit):
        main(["init", "mine"])
    assert "exists" in capsys.readouterr().err
    assert (workplace / "config.yml").read_text() == "mine"
