"""OC22: total energies in, references off for the network alone, total energies out; every atom free."""

from __future__ import annotations

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from samples import base_config, trainer_arguments, write_lmdb
from torch_geometric.data import Data

from dens_plugin.data.oc22 import OC22Lmdb
from dens_plugin.data.oc22_references import read_references, require_references, with_element_references
from dens_plugin.data.release import raw_files, read_frames
from dens_plugin.fields import corruption_of
from dens_plugin.inference.calculator import load_calculator
from dens_plugin.objectives.dens import DeNS
from dens_plugin.testing import EPOCH, random_structure
from dens_plugin.training.trainer import DeNSTrainer

KEY_MAPPING = {"y": "energy", "force": "forces"}
ENERGIES = np.concatenate([[0.0], -np.linspace(2, 12, 79), np.zeros(20)])  # eV, H to Hg
SCALE = 25.0


def record(structure: Data, *, energy: float, oc22: int = 1) -> Data:
    """A structure as OC22's LMDBs have it: old names, a total energy, sid and fid as tensors, no atom fixed."""
    return Data(
        pos=structure.pos,
        cell=structure.cell,
        atomic_numbers=structure.atomic_numbers.float(),
        natoms=structure.natoms,
        tags=structure.tags,
        y=energy,
        force=structure.forces,
        sid=torch.tensor([structure.sid]),
        fid=torch.tensor([structure.fid]),
        nads=1,
        oc22=oc22,
    )


def synthetic(seed: int, **changes) -> Data:
    structure = random_structure(5 + seed % 4, seed=seed, sid=seed)
    energy = float(ENERGIES[structure.atomic_numbers].sum()) + structure.energy
    return record(structure, energy=energy, **changes)


def sum_of_references(batch, energies=ENERGIES):
    """(B,) float64, by hand."""
    numbers = batch.atomic_numbers.long().numpy()
    return torch.zeros(batch.num_graphs).double().index_add(0, batch.batch, torch.tensor(energies[numbers]))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    path = tmp_path_factory.mktemp("references") / "references.npz"
    np.savez(path, coeff=ENERGIES)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders train and val."""
    root = tmp_path_factory.mktemp("oc22")
    for split, seeds in (("train", range(6)), ("val", range(6, 9))):
        write_lmdb(root / split, [synthetic(seed) for seed in seeds])
    return root


@pytest.fixture
def data(written, tmp_path):
    """The same under new names: LMDB opens a file once a process."""
    return shutil.copytree(written, tmp_path / "oc22")


def dataset_config(src, references=None, **changes):
    transforms = {} if references is None else {"element_references": {"energy": {"file": str(references)}}}
    return {"format": "oc22_lmdb", "src": str(src), "key_mapping": KEY_MAPPING, "transforms": transforms, **changes}


def run_config(data, references):
    config = base_config(data)
    normalizer = {"energy": {"mean": 0.0, "stdev": SCALE}, "forces": {"mean": 0.0, "stdev": 2.0}}
    config["dataset"]["train"] |= dataset_config(data / "train", lin_ref=str(references))
    config["dataset"]["train"]["transforms"] = {"normalizer": normalizer}
    config["dataset"]["val"]["lin_ref"] = str(references)  # the authors' files repeat it
    config["task"]["objective"] = {"name": "dens", "prob": 1.0}
    return config


def build(config, run_dir):
    distutils.setup_env_local()
    return DeNSTrainer(**trainer_arguments(copy.deepcopy(config), run_dir=run_dir))


# The data set


def test_takes_fairchems_name():
    setup_imports({"skip_experimental_imports": True})
    assert registry.get_dataset_class("oc22_lmdb") is OC22Lmdb


@pytest.mark.parametrize("name", ["train", "train/data.0000.lmdb"])
def test_energies_are_total(data, references, name):
    dataset = OC22Lmdb(dataset_config(data / name, references))
    assert [dataset[seed].energy for seed in range(6)] == [synthetic(seed).y for seed in range(6)]
    assert (dataset[0].sid, dataset[0].fid) == (0, 0)


def test_all_atoms_are_free_and_all_may_be_corrupted(data):
    dataset = OC22Lmdb(dataset_config(data / "train"))
    batch = data_list_collater([dataset[index] for index in range(6)], otf_graph=True)
    for free_only in (True, False):
        objective = DeNS(prob=1.0, corrupt_ratio=None, free_only=free_only)
        prepared = objective.prepare(batch, EPOCH)
        assert corruption_of(prepared).mask.all()
        assert objective.rows(prepared)["noise"].count == len(batch.pos)


def test_structures_without_labels(tmp_path, references):
    unlabelled = synthetic(0)
    del unlabelled.y
    dataset = OC22Lmdb(dataset_config(write_lmdb(tmp_path / "test", [unlabelled]), references))
    assert "energy" not in dataset[0]
    assert not dataset[0].fixed.any()


def test_oc20_structures_become_total(tmp_path, references):
    oc20 = synthetic(3)
    del oc20.oc22
    with (tmp_path / "oc20_ref.pkl").open("wb") as file:
        pickle.dump({"random3": -100.0}, file)
    total = {"train_on_oc20_total_energies": True, "oc20_ref": str(tmp_path / "oc20_ref.pkl")}
    dataset = OC22Lmdb(dataset_config(write_lmdb(tmp_path / "oc20", [oc20]), references, **total))
    assert dataset[0].energy == pytest.approx(synthetic(3).y - 100)


# What a user gets wrong


def test_element_without_a_reference(data, tmp_path):
    energies = ENERGIES.copy()
    number = int(synthetic(0).atomic_numbers[2])
    for value in (0.0, 3e11, np.nan):
        energies[number] = value
        np.savez(tmp_path / "part.npz", coeff=energies)
        dataset = OC22Lmdb(dataset_config(data / "train/data.0000.lmdb", tmp_path / "part.npz"))
        with pytest.raises(ValueError, match=r"part.npz' has no reference energy for \w+ in sid 0, fid 0; use"):
            dataset[0]
        dataset.close_db()


def test_element_beyond_the_references(data, tmp_path):
    np.savez(tmp_path / "short.npz", coeff=ENERGIES[:2])
    with pytest.raises(ValueError, match="has no reference energy for"):
        OC22Lmdb(dataset_config(data / "train", tmp_path / "short.npz"))[0]


def test_oc20_references(data, tmp_path):
    energies = ENERGIES.copy()
    energies[[1, 8]] = -3.3939827685322452, -4.823122399845358
    np.savez(tmp_path / "oc20.npz", coeff=energies)
    with pytest.raises(ValueError, match=r"oc20.npz' holds OC20's linear references and .*sid 0, fid 0 is OC22's"):
        OC22Lmdb(dataset_config(data / "train", tmp_path / "oc20.npz"))[0]


def test_oc20_structure_among_oc22s(tmp_path):
    oc20 = synthetic(0)
    del oc20.oc22
    dataset = OC22Lmdb(dataset_config(write_lmdb(tmp_path / "mixed", [oc20])))
    with pytest.raises(ValueError, match=r"structure 0 is not OC22's.*train_on_oc20_total_energies=True"):
        dataset[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linref": "x.npz"}, r"unknown key 'linref' in dataset \(format oc22_lmdb\); did you mean 'lin_ref'"),
        ({"lin_ref": "x.npz"}, r"only dens_plugin.DeNSTrainer knows lin_ref.*energy: \{file: x.npz\}"),
        ({"transforms": {"element_refs": {}}}, "unknown key 'element_refs' .* did you mean 'element_references'"),
        ({"transforms": {"element_references": {"enery": {}}}}, "unknown key 'enery' .* did you mean 'energy'"),
        ({"transforms": {"element_references": {"energy": {"file": "no.npz"}}}}, r"energy.file: there is no 'no.npz'"),
        ({"train_on_oc20_total_energies": True}, "needs oc20_ref"),
        ({"src": "nowhere"}, "'nowhere' cannot be opened"),
    ],
)
def test_slip_in_the_data_sets_block(data, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        OC22Lmdb(dataset_config(data / "train") | change)


def test_file_that_holds_no_references(tmp_path):
    np.savez(tmp_path / "other.npz", energies=ENERGIES)
    np.savez(tmp_path / "table.npz", coeff=ENERGIES[None])
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz", "table.npz"):
        with pytest.raises(ValueError, match=rf"here: .*{name}"):
            read_references(tmp_path / name, "here")


# From `lin_ref` to references


def test_lin_ref_becomes_references_of_the_training_block(references):
    train = {"src": "a", "lin_ref": str(references), "transforms": {"normalizer": {"energy": {}}}}
    config = {"dataset": train, "val_dataset": {"src": "b", "lin_ref": str(references)}, "test_dataset": {}}
    before = copy.deepcopy(config)
    blocks = with_element_references(config)
    transforms = {"normalizer": {"energy": {}}, "element_references": {"energy": {"file": str(references)}}}
    assert blocks == {"dataset": {"src": "a", "transforms": transforms}, "val_dataset": {"src": "b"}}
    assert config == before
    assert with_element_references({**config, **blocks}) == blocks


def test_without_lin_ref_nothing_changes():
    config = {"dataset": {"src": "a", "transforms": {"normalizer": {}}}, "val_dataset": {"src": "b"}}
    assert with_element_references(config) == config


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("no.npz", None, "dataset.train.lin_ref: there is no 'no.npz'"),
        (None, "x.npz", "dataset.val.lin_ref is given and dataset.train.lin_ref is not"),
        ("x.npz", "y.npz", "dataset.val.lin_ref 'y.npz' and dataset.train.lin_ref 'x.npz' must be the same"),
    ],
)
def test_lin_ref_that_cannot_be_meant(train, val, message):
    config = {"dataset": {"src": "a"}, "val_dataset": {"src": "b"}}
    for key, path in (("dataset", train), ("val_dataset", val)):
        config[key] |= {} if path is None else {"lin_ref": path}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        with_element_references(config)


def test_lin_ref_of_a_config_that_is_not_a_trainers_yet(references):
    require_references({"train": {"lin_ref": str(references)}, "val": {"lin_ref": str(references)}, "test": {}})
    with pytest.raises(FileNotFoundError, match=r"dataset.train.lin_ref: there is no 'no.npz'"):
        require_references({"train": {"lin_ref": "no.npz"}})


def test_total_energies_want_a_word_about_references(references):
    """Without references only by saying so; other formats and a file given fairchem's way need no word."""
    train = {"format": "oc22_lmdb", "src": "a"}
    with pytest.raises(ValueError, match=r"dataset.train.lin_ref is missing: .*oc22_linfit_coeffs.npz.*lin_ref: null"):
        with_element_references({"dataset": train})
    for none in (None, False):
        assert with_element_references({"dataset": {**train, "lin_ref": none}}) == {"dataset": train}
    assert with_element_references({"dataset": dataset_config("a", references)})
    with pytest.raises(ValueError, match=r"must be the path of an \.npz file, got 7, or null for none"):
        with_element_references({"dataset": {**train, "lin_ref": 7}})


def test_references_said_twice(references):
    block = dataset_config("a", references, lin_ref=str(references))
    with pytest.raises(ValueError, match=r"lin_ref and dataset.train.transforms.element_references say the same"):
        with_element_references({"dataset": block})


# Training and prediction


def test_training_and_predictions(data, references, tmp_path):
    """A perfect network has no loss, a network that says nothing predicts the references, in float32 and in files."""
    trainer = build(run_config(data, references), tmp_path)
    batch = next(iter(trainer.train_loader))
    left_over = batch.energy.double() - sum_of_references(batch)
    noise = trainer.objective.targets(batch)["noise"]
    perfect = {"energy": (left_over / SCALE).float()[:, None], "forces": batch.forces / 2.0, "noise": noise}
    assert trainer._compute_loss(perfect, batch) < 1e-4

    trainer.train(disable_eval_tqdm=True)
    checkpoint = tmp_path / "checkpoints" / trainer.timestamp_id / "checkpoint.pt"
    saved = torch.load(checkpoint, weights_only=False)
    assert torch.equal(saved["elementrefs"]["energy"]["element_references"], torch.tensor(ENERGIES))

    validation = next(iter(trainer.val_loader))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    trainer.ema = None
    silent = trainer.predict(trainer.val_loader, results_file="totals", disable_tqdm=True)
    assert silent["energy"][0].dtype == np.float32
    expected = sum_of_references(validation)
    assert np.allclose(np.concatenate(silent["energy"]), expected, rtol=0, atol=1e-3)


def test_calculator_gives_total_energies_without_the_file(data, references, tmp_path):
    own = shutil.copy(references, tmp_path / "own.npz")
    trainer = build(run_config(data, own), tmp_path)
    trainer.train(disable_eval_tqdm=True)
    validation = next(iter(trainer.val_loader))
    expected = trainer.predict(trainer.val_loader, per_image=False, disable_tqdm=True)["energy"]
    own.unlink()
    calculator = load_calculator(tmp_path / "checkpoints" / trainer.timestamp_id / "checkpoint.pt", cpu=True)
    structure = validation.to_data_list()[0]
    atoms = Atoms(structure.atomic_numbers.long(), structure.pos, cell=structure.cell[0], pbc=True)
    atoms.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(expected[0].item(), abs=1e-3)


def test_real_energies_are_near_their_references(shared_data, tmp_path):
    """Total energies of OC20-mini written in OC22's format: OC20's references fit them, OC22's do not."""
    frames = next(read_frames(raw_files(shared_data / "oc20_mini" / "s2ef" / "val_id")[0].frames))
    structure = Data(
        pos=torch.tensor(frames.positions).float(),
        cell=torch.tensor(frames.cell.array).float()[None],
        atomic_numbers=torch.tensor(frames.numbers),
        natoms=len(frames),
        tags=torch.tensor(frames.get_tags()),
        forces=torch.tensor(frames.get_forces()).float(),
        sid=1,
        fid=0,
    )
    folder = write_lmdb(tmp_path / "oc20_mini", [record(structure, energy=frames.get_potential_energy(), oc22=0)])
    errors = []
    for name in ("oc20_linref.npz", "oc22_linfit_coeffs.npz"):
        dataset = OC22Lmdb(dataset_config(folder, shared_data / name))
        batch = data_list_collater([dataset[0]], otf_graph=True)
        energies = read_references(shared_data / name, "here").energies
        errors.append(abs(batch.energy.item() - sum_of_references(batch, energies).item()) / len(frames))
        for env in dataset.envs:
            env.close()
    assert errors[0] < 0.2 < errors[1], errors
