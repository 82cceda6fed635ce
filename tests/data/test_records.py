"""Structures that no run can use are named by file and index, in whichever data set they are."""

from __future__ import annotations

import pickle
from typing import ClassVar

import lmdb
import numpy as np
import pytest
import torch
from fairchem.core.datasets import LmdbDataset
from fairchem.core.datasets.base_dataset import create_dataset
from samples import write_lmdb
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from dens_plugin.data.records import LABELS, CheckedDataset, Limits, require_structures
from dens_plugin.testing import random_structure

LIMITS = Limits(elements=90, periodic=True)


def written(folder, change, *, at=2):
    """Four structures, of which one is changed, and the data set of them."""
    structures = [random_structure(5, seed=seed, sid=100 + seed) for seed in range(4)]
    change(structures[at])
    return LmdbDataset({"src": str(write_lmdb(folder, structures))})


def with_nan(structure):
    structure.forces[1, 1] = float("nan")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_nan, "`forces` is NaN or infinite"),
        (lambda s: s.update({"energy": float("inf")}), "`energy` is NaN or infinite"),
        (lambda s: s.update({"pos": s.pos * float("nan")}), "`pos` is NaN or infinite"),
        (lambda s: s.update({"forces": s.forces[:-1]}), r"forces \(4, 3\) for \(5, 3\)"),
        (lambda s: s.update({"natoms": 7}), "`natoms` is 7 and there are 5 atoms"),
        (
            lambda s: s.update({"atomic_numbers": s.atomic_numbers * 0}),
            "atomic numbers of no element: 0; `dens data check`",
        ),
        (lambda s: s.update({"atomic_numbers": s.atomic_numbers * 0 + 95}), "elements 1 to 89, and it has 95"),
        (lambda s: s.update({"cell": torch.zeros(1, 3, 3)}), "its cell has no volume; set `use_pbc: false`"),
    ],
)
def test_names_file_index_and_structure(tmp_path, change, problem):
    checked = CheckedDataset(written(tmp_path / "data", change), LIMITS, LABELS)
    assert checked[1].sid == 101
    with pytest.raises(ValueError, match=rf"data.0000.lmdb', structure 2 \(.*sid 102, fid 0\): .*{problem}"):
        checked[2]


@pytest.mark.parametrize("content", [b"", b"garbage", None, pickle.dumps(random_structure(3))[:-40], pickle.dumps(7)])
def test_names_a_damaged_record(tmp_path, content):
    """One that is cut, empty, missing, or something else."""
    folder = write_lmdb(tmp_path / "data", [random_structure(5, seed=seed) for seed in range(3)])
    env = lmdb.open(str(folder / "data.0000.lmdb"), subdir=False)
    with env, env.begin(write=True) as transaction:
        transaction.delete(b"1") if content is None else transaction.put(b"1", content)
    checked = CheckedDataset(LmdbDataset({"src": str(folder)}), LIMITS)
    assert len(checked) == 3
    with pytest.raises(ValueError, match=r"data.0000.lmdb', structure 1 cannot be read"):
        checked[1]


def test_finds_the_file_behind_a_shuffled_choice(tmp_path):
    """Two files, and a sample of both in another order, as the trainer has them."""
    structures = [random_structure(5, seed=seed, sid=seed) for seed in range(6)]
    structures[4].energy = float("nan")
    write_lmdb(tmp_path / "other", structures[3:])
    folder = write_lmdb(tmp_path / "data", structures[:3])
    (tmp_path / "other" / "data.0000.lmdb").rename(folder / "data.0001.lmdb")
    np.savez(folder / "metadata.npz", natoms=np.full(6, 5))
    checked = CheckedDataset(create_dataset({"src": str(folder), "sample_n": 6}, "train"), LIMITS, LABELS)
    index = checked._dataset.indices.tolist().index(4)
    with pytest.raises(ValueError, match=r"data.0001.lmdb', structure 1 \(id 1_1, sid 4, fid 0\): `energy` is NaN"):
        checked[index]
    assert sorted(checked[other].sid for other in range(6) if other != index) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update({"pos": s.pos.double()}),
        lambda s: s.update({"pos": s.pos.double().numpy()}),
        lambda s: s.update({"cell": s.cell.view(3, 3)}),
        lambda s: s.update({"forces": s.forces.numpy(), "atomic_numbers": s.atomic_numbers.numpy()}),
        lambda s: s.__delattr__("natoms"),
        lambda s: s.__delattr__("fixed"),
        lambda s: s.__delattr__("tags"),
    ],
    ids=["float64", "NumPy positions", "cell", "NumPy", "natoms", "fixed", "tags"],
)
def test_records_of_others_become_fairchems(tmp_path, change):
    """What fits into a batch beside fairchem's own records, with the same content."""
    checked = CheckedDataset(written(tmp_path / "data", change), LIMITS, LABELS)
    plain = CheckedDataset(written(tmp_path / "plain", lambda s: None), LIMITS, LABELS)
    batch, expected = (Batch.from_data_list([data[0], data[2]]) for data in (checked, plain))
    for name in ("pos", "cell", "natoms", "atomic_numbers", "forces", "energy"):
        torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0)
    assert batch.fixed.shape == expected.fixed.shape
    assert Batch.from_data_list([checked[2], checked[0]]).natoms.tolist() == [5, 5]


def test_a_missing_field_is_not_a_damaged_file(tmp_path):
    checked = CheckedDataset(written(tmp_path / "data", lambda s: s.__delattr__("atomic_numbers")), LIMITS)
    with pytest.raises(ValueError, match=r"structure 2: it has no field `atomic_numbers`; it has .*pos"):
        checked[2]


def test_a_typo_in_transforms_is_not_a_damaged_file(tmp_path):
    folder = write_lmdb(tmp_path / "data", [random_structure(5)])
    checked = CheckedDataset(LmdbDataset({"src": str(folder), "transforms": {"normaliser": {}}}), LIMITS)
    with pytest.raises(ValueError, match=r"structure 0: `transforms` names 'normaliser', which fairchem does not have"):
        checked[0]


def test_lets_molecules_and_unlabelled_structures_pass(tmp_path):
    """Neither a cell that is not looked at nor labels of which nothing is made are a reason to stop."""

    def isolated(structure):
        structure.cell = torch.zeros(1, 3, 3)
        structure.energy = float("nan")

    dataset = written(tmp_path / "data", isolated)
    assert CheckedDataset(dataset, Limits(elements=90))[2].sid == 102

    def open_boundaries(structure):
        isolated(structure)
        structure.pbc = torch.tensor([[False, False, False]])

    assert CheckedDataset(written(tmp_path / "open", open_boundaries), LIMITS)[2].sid == 102


def test_periodicity_is_said_by_all_or_none(tmp_path):
    """A batch whose first structure lacks `pbc` drops it, and a molecule among them would become a crystal."""
    checked = CheckedDataset(
        written(tmp_path / "data", lambda s: s.update({"pbc": torch.zeros(3, dtype=torch.bool)})), LIMITS
    )
    assert "pbc" not in checked[1]
    with pytest.raises(ValueError, match=r"structure 2 .*: it has a `pbc` and .*structure 1 has none; give it to all"):
        checked[2]


@pytest.mark.parametrize("pbc", [[True, True, False], [True, True, True]])
def test_zero_vectors_along_open_directions_are_fine(tmp_path, pbc):
    """A sheet has none across it; a crystal needs all of them, also where ASE has put 1 Å in place of nothing."""
    cells = torch.tensor([[8.0, 0, 0], [0, 8, 0], [0, 0, 0]]), torch.tensor([[8.0, 0, 0], [0, 8, 0], [0, 0, 1]])
    for number, cell in enumerate(cells):
        change = {"cell": cell[None], "pbc": torch.tensor(pbc)}
        checked = CheckedDataset(written(tmp_path / f"data{number}", lambda s, c=change: s.update(c)), LIMITS)
        if all(pbc):
            with pytest.raises(ValueError, match=r"its cell has no volume|shorter than 1\.1 Å, as ASE makes"):
                checked[2]
        else:
            assert checked[2].sid == 102


def test_no_structures(tmp_path):
    with pytest.raises(ValueError, match="the set holds no structures"):
        require_structures([], "the set")


def test_small_sets_are_read_once():
    """Every step would otherwise spend as long on reading eight molecules as on a light network."""

    class Counting(Dataset):
        config: ClassVar = {"src": "memory"}

        def __init__(self, size):
            self.size, self.reads = size, 0

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            self.reads += 1
            return random_structure(4)

    small, large = Counting(10), Counting(100_000)
    for dataset in (small, large):
        checked = CheckedDataset(dataset, LIMITS)
        assert [len(checked[3].pos) for _ in range(2)] == [4, 4]
    assert (small.reads, large.reads) == (1, 2)
