"""Batches that are filled up: full, equally many for all ranks, each structure once, the same after an interruption."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from fairchem.core.datasets.base_dataset import Subset
from rank_runs import assert_same_run, final_state, run_to_the_end
from test_objectives import history

import dens_plugin.training.filling as module
from dens_plugin.fields import PADDING
from dens_plugin.padding.buckets import Buckets
from dens_plugin.padding.budgets import Budget
from dens_plugin.training.filling import FilledBatches, filled_batches

# Atoms of 45 systems of OC20, and of many that are distributed like them.
OC20 = """
    33 33 37 37 40 40 41 41 47 47 49 49 52 52 55 62 66 66 68 68 70 70 73 74 74 77 77 86 97 97 99 99 99 99 100 100
    101 101 104 104 160 166 166 185 185
""".split()  # noqa: SIM905
SIZES = np.clip(np.random.default_rng(0).lognormal(4.27, 0.45, 3000), 20, 225).astype(int)


def filled(sizes, most, *, rank=0, ranks=1, seed=0):
    return FilledBatches(np.asarray(sizes) / most, seed=seed, rank=rank, num_replicas=ranks)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("most", [300, 600, 1200])
def test_are_full_and_no_fuller(most, ranks):
    """At least nine tenths, with about as many structures in each, of every epoch."""
    for epoch in (0, 5):
        atoms, counts = [], []
        for rank in range(ranks):
            batches = filled(SIZES, most, rank=rank, ranks=ranks)
            batches.set_epoch(epoch)
            atoms += [SIZES[batch].sum() for batch in batches]
            counts += [len(batch) for batch in batches]
        assert max(atoms) <= most
        assert np.mean(atoms) > 0.93 * most
        assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("most", [3, 10, 49])
def test_batches_may_be_full_to_the_last_atom(most):
    assert {len(batch) for batch in filled([1] * most * 7, most)} == {most}


def test_of_a_few_structures_too():
    sizes = np.array(OC20, dtype=int)
    atoms = [sizes[batch].sum() for batch in filled(sizes, 640)]
    assert max(atoms) <= 640
    assert np.mean(atoms) > 0.9 * 640


@pytest.mark.parametrize("pool", [65536, 500])
def test_each_structure_is_in_one_batch_of_one_rank(monkeypatch, pool):
    monkeypatch.setattr(module, "_POOL", pool)
    shares = [[*filled(SIZES, 700, rank=rank, ranks=4)] for rank in range(4)]
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(len(SIZES)))
    assert {len(share) for share in shares} == {len(filled(SIZES, 700, ranks=4))}
    assert max(SIZES[batch].sum() for share in shares for batch in share) <= 700


def test_all_epochs_have_as_many_batches_of_other_structures():
    batches = filled(SIZES, 600)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append([*batches])
    assert {len(epoch) for epoch in epochs} == {len(batches)}
    first = {frozenset(batch) for batch in epochs[0]}
    assert len(first.intersection(map(frozenset, epochs[1]))) < 0.02 * len(first)
    batches.set_epoch(0)
    assert [*batches] == epochs[0]
    assert [*filled(SIZES, 600, seed=1)] != epochs[0]


@pytest.mark.parametrize("pool", [65536, 500])
def test_goes_on_in_the_middle_of_an_epoch(monkeypatch, pool):
    monkeypatch.setattr(module, "_POOL", pool)
    batches = filled(SIZES, 600)
    batches.set_epoch(2)
    whole = [*batches]
    for start in (0, 1, 100, len(whole) - 1, len(whole)):
        batches.set_epoch_and_start_iteration(2, start)
        assert [*batches] == whole[start:]


def test_structures_of_different_sizes_meet():
    """A batch has its share of small and large ones, as one of a fixed number of structures has."""
    means = [SIZES[batch].mean() for batch in filled(SIZES, 600)]
    assert np.std(means) < 0.2 * SIZES.mean()


@pytest.mark.parametrize("most", [300, 600])
def test_with_padding_less_than_a_tenth_is_wasted(most):
    """Of the atoms and edges of all batches; edges are twenty at an atom, but for a few."""
    random = np.random.default_rng(1)
    needs = [
        Budget(int(SIZES[batch].sum()), int(SIZES[batch].sum() * 20 * random.uniform(0.98, 1)), len(batch))
        for batch in filled(SIZES, most)
    ]
    buckets = Buckets(needs[:24])
    for need in needs:
        buckets.budget_for(need)
    assert buckets.waste.atoms < 0.1
    assert buckets.waste.edges < 0.1
    assert len(buckets.budgets) <= 4


@pytest.mark.parametrize(("sizes", "ranks", "message"), [([10], 2, "fewer than 2 ranks"), ([10, 10, 10], 2, "raise")])
def test_what_cannot_be_shared_out(sizes, ranks, message):
    with pytest.raises(ValueError, match=message):
        filled(sizes, 10, ranks=ranks)


class Sized:
    """A data set with what fairchem reads of its metadata."""

    def __init__(self, **metadata):
        self._metadata = {name: np.array(values) for name, values in metadata.items()}

    def metadata_hasattr(self, name):
        return name in self._metadata

    def __len__(self):
        return len(self._metadata["natoms"])

    def __getitem__(self, index):
        return {"sid": index + 100}


def of_set(dataset, **optim):
    return filled_batches(dataset, optim, seed=0, rank=0, num_replicas=1)


def test_by_edges_and_by_both():
    dataset = Sized(natoms=[4, 4, 4, 4], neighbors=[10, 10, 30, 30])
    assert len(of_set(dataset, batch_atoms=8)) == 2
    assert sorted(sorted(batch) for batch in of_set(dataset, batch_edges=40)) in ([[0, 2], [1, 3]], [[0, 3], [1, 2]])
    assert len(of_set(dataset, batch_atoms=8, batch_edges=30)) == 3


def test_of_a_part_of_a_set():
    dataset = Sized(natoms=[50, 1, 1, 50])
    part = Subset.__new__(Subset)
    part.dataset, part.indices = dataset, [1, 2]
    assert len(of_set(part, batch_atoms=10)) == 1


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"batch_atoms": 30}, r"structure 1 of the training set \(sid 101\) has 40 atoms, and optim.batch_atoms is 30"),
        ({"batch_edges": 30}, r"optim.batch_edges needs `neighbors`, the edges .* without it take optim.batch_atoms"),
    ],
)
def test_bad_input_is_named(optim, message):
    dataset = Sized(natoms=[20, 40])
    with pytest.raises(ValueError, match=message):
        of_set(dataset, **optim)


def changed(config, **optim):
    config = copy.deepcopy(config)
    del config["optim"]["batch_size"]
    config["optim"] |= {"batch_atoms": 20, **optim}
    return config


class TestRuns:
    def test_trains_pads_and_says_how_full_batches_are(self, config, build, caplog):
        caplog.set_level(logging.INFO)
        trainer = build(changed(config, pad=True, max_epochs=2))
        assert PADDING in next(iter(trainer.train_loader))
        trainer.train(disable_eval_tqdm=True)
        assert trainer.step == 2 * len(trainer.train_loader)
        assert "Batches are filled up: " in caplog.text
        rows = history(trainer, "train")
        assert rows[-1]["epoch"] == 2
        assert torch.isfinite(torch.tensor([row["loss"] for row in rows])).all()

    def test_a_resumed_run_is_the_uninterrupted_one(self, config, build):
        config = changed(config, max_epochs=2, checkpoint_every=3)
        whole, first = build(config), build(config)
        whole.train(disable_eval_tqdm=True)
        loss_of = first.loss
        first.loss = lambda outputs, batch: loss_of(outputs, batch) if first.step < 5 else pytest.fail("stop")
        with pytest.raises(pytest.fail.Exception):
            first.train(disable_eval_tqdm=True)
        second = build(config)
        second.load_checkpoint(str(first._folder / "checkpoint.pt"))
        assert second.step == 3
        assert 3 % len(second.train_loader)
        second.train(disable_eval_tqdm=True)
        assert_same_run(final_state(second), final_state(whole))

    def test_two_ranks(self, config, tmp_path):
        """With padded batches, which differ between ranks; all take as many steps."""
        config = changed(config, pad=True, max_epochs=1, batch_atoms=18)
        state = run_to_the_end(config, tmp_path, 2)
        assert state["step"] > 0
        assert all(torch.isfinite(value).all() for value in state.values())
