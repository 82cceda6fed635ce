"""Padding: what a padded batch holds, and that batches of one budget are alike."""

from __future__ import annotations

import copy

import pytest
import torch
from padded import SIZES, equiformer_v2, escn, esen, in_dtype, loaded, roomy
from torch_geometric.data import Batch

from dens_plugin.backbones.neighbours import with_neighbours, without_neighbours
from dens_plugin.fields import (
    CORRUPTION,
    MD,
    NEIGHBOURS,
    PADDING,
    ROWS,
    Rows,
    free_atoms,
    identifiers,
    names_of,
    real_structures,
)
from dens_plugin.nn.edge_frames import has_direction
from dens_plugin.objectives.ndem import NDeM
from dens_plugin.padding.budgets import Budget
from dens_plugin.padding.pad import pad, without_ghosts
from dens_plugin.padding.signature import named_tensors, signature
from dens_plugin.testing import EPOCH, default_dtype, random_batch
from dens_plugin.training.loading import loader_search


@pytest.fixture(scope="module")
def model():
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        return equiformer_v2()


@pytest.fixture
def batch(model):
    return loaded(model)


def test_has_the_size_of_its_budget(batch):
    budget = roomy(batch)
    padded = pad(batch, budget)
    assert Budget.of(padded) == Budget(
        budget.atoms, budget.edges, budget.structures, Budget.of(batch).rows, budget.incoming
    )
    assert {name: len(rows.chosen) for name, rows in padded[ROWS].items()} == budget.rows
    assert padded.natoms.sum() == len(padded.pos) == padded.ptr[-1]
    assert torch.equal(padded.batch.bincount(), padded.natoms)
    assert padded.num_graphs == len(padded.natoms) == budget.structures


def test_touches_no_batch(batch):
    before = {name: value.clone() for name, value in named_tensors(batch)}
    pad(batch, roomy(batch))
    after = dict(named_tensors(batch))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_real_rows_come_first_and_are_as_they_were(batch):
    padded, number = dict(named_tensors(pad(batch, roomy(batch)))), len(batch.pos)
    for name, value in named_tensors(batch):
        dim = 1 if name.endswith("edge_index") else 0
        first = padded[name].narrow(dim, 0, value.shape[dim]) if value.dim() else padded[name]
        assert torch.equal(first, value), name
    assert padded["padding.atoms"].tolist() == [True] * number + [False] * 11


def test_ghosts_count_nowhere(batch):
    padded = pad(batch, roomy(batch))
    for name, rows in padded[ROWS].items():
        assert int(rows.count) == int(batch[ROWS][name].count)
        assert int(rows.mask.sum()) == len(batch[ROWS][name].chosen)
    assert not padded[CORRUPTION].mask[~padded[PADDING].atoms].any()
    assert not free_atoms(padded)[~padded[PADDING].atoms].any()
    assert real_structures(padded).sum() == batch.num_graphs


def test_ghosts_are_told_from_atoms_that_may_move_where_none_is_marked_as_fixed(batch):
    del batch["fixed"]
    padded = pad(batch, roomy(batch))
    assert torch.equal(free_atoms(padded), padded[PADDING].atoms)


def test_ghost_edges_are_among_ghosts_of_the_last_structure(batch):
    padded = pad(batch, roomy(batch))
    record, number = padded[NEIGHBOURS], batch[NEIGHBOURS].edge_index.shape[1]
    added = record.edge_index[:, number:]
    assert (padded.batch[added] == padded.num_graphs - 1).all()
    assert (added[0] != added[1]).all()
    assert (record.edge_index[1].diff() >= 0).all()
    assert padded.batch[record.edge_index[1]].bincount(minlength=6).tolist() == record.neighbors.tolist()
    degrees = record.edge_index[1].bincount(minlength=len(padded.pos))[-9:]  # two ghosts are structures of their own
    assert degrees.max() - degrees.min() <= 1
    vectors = padded.pos[added[0]] - padded.pos[added[1]]
    assert has_direction(vectors).all()
    assert vectors.norm(dim=1).max() < record.search.cutoff


@pytest.mark.parametrize("spare", [1, 3, 20])
def test_lists_are_spread_over_ghosts(batch, spare):
    padded = pad(batch, roomy(batch, rows=spare, incoming=spare, edges=40))
    for name in ("forces", "noise"):
        real = len(batch[ROWS][name].chosen)
        chosen, edges = padded[ROWS][name].where(), padded[NEIGHBOURS].incoming[name]
        assert (chosen.diff() >= 0).all()
        assert (edges.diff() >= 0).all()
        ghosts = chosen[real:]
        assert ghosts.unique_consecutive(return_counts=True)[1].max() <= -(-spare // 9)
        assert set(padded[NEIGHBOURS].edge_index[1, edges].tolist()) <= set(chosen.tolist())


def test_names_are_those_of_real_structures(batch):
    padded = pad(batch, roomy(batch))
    assert names_of(identifiers(padded)) == names_of(identifiers(batch)) == "sid 0, fid 0; sid 1, fid 0; sid 2, fid 0"


def test_comes_back_without_its_ghosts(batch):
    batch["label"] = ["a", "b", "c"]
    real = without_ghosts(pad(batch, roomy(batch)))
    assert set(real.keys()) == set(batch.keys()) - {CORRUPTION, ROWS, NEIGHBOURS}
    assert real.num_graphs == 3
    for key in set(real.keys()):
        assert real[key] == batch[key] if key == "label" else torch.equal(real[key], batch[key]), key
    assert real[1].pos.shape == batch[1].pos.shape
    assert without_ghosts(batch) is batch


@pytest.mark.parametrize("build", [equiformer_v2, escn, esen])
def test_batches_of_one_budget_have_one_signature(build):
    """Of other sizes, of single atoms, of three atoms beside three values of `pbc`, with a field that says MD."""
    network, signatures = build(), set()
    for sizes in (SIZES, (1, 1), (3, 3, 3), (5,), (12, 2)):
        batch = random_batch(sizes)
        batch[MD] = torch.zeros(len(sizes), dtype=torch.bool)
        structures = batch.to_data_list()
        for structure in structures:
            structure.pbc = torch.ones(3, dtype=torch.bool)
            structure.edge_index = torch.zeros(2, 5 * len(sizes), dtype=torch.long)  # as old data sets store them
        prepared = loaded(network, batch=Batch.from_data_list(structures), dtype=torch.float32)
        budget = Budget(40, 400, 5, {"energy": 5, "forces": 35, "noise": 35}, {"forces": 350, "noise": 350})
        signatures.add(signature(pad(prepared, budget)))
    assert len(signatures) == 1, set.union(*map(set, signatures)) - set.intersection(*map(set, signatures))
    names = [name for name, *_ in signatures.pop()]
    assert "edge_index" not in names
    assert {"neighbours.edge_index", "rows.noise.chosen", "neighbours.incoming.forces", "corruption.mask"} <= set(names)


def test_signatures_tell_shapes_types_and_names_apart(batch):
    other = pad(batch, roomy(batch))
    known = signature(other)
    assert signature(pad(batch, roomy(batch))) == known
    assert signature(pad(batch, roomy(batch, incoming=24))) != known
    assert signature(in_dtype(other, torch.float32)) != known
    other["more"] = torch.zeros(1)
    assert signature(other) != known


def test_a_structure_that_is_copied_knows_its_clean_atoms(model):
    objective = NDeM()
    batch = objective.prepare(random_batch(), EPOCH)
    batch = with_neighbours(batch, loader_search(model, {"loader_graph": True}))
    padded = pad(batch, roomy(batch))
    number = len(batch.pos)
    assert padded["clean_atoms"][number:].tolist() == list(range(number, len(padded.pos)))


class TestRefusals:
    def test_without_neighbours(self, batch):
        with pytest.raises(ValueError, match=r"has no record of them: set optim.loader_graph: true"):
            pad(without_neighbours(batch), roomy(batch))

    def test_a_second_time(self, batch):
        with pytest.raises(ValueError, match="was padded before"):
            pad(pad(batch, roomy(batch)), roomy(batch))

    @pytest.mark.parametrize(
        "room", [{"atoms": 3}, {"edges": -1}, {"edges": 0}, {"structures": 0}, {"rows": 0}, {"incoming": -1}]
    )
    def test_without_room(self, batch, room):
        with pytest.raises(ValueError, match=r"Budget\(atoms=.* has no room for a batch that takes Budget"):
            pad(batch, roomy(batch, **room))

    def test_a_list_that_is_not_of_its_mask(self, batch):
        rows = pad(batch, roomy(batch))[ROWS]["forces"]
        for mask in (torch.ones_like(rows.mask), rows.mask & (rows.mask.cumsum(0) > 1)):
            with pytest.raises(ValueError, match="and its mask"):
                rows._replace(mask=mask).where()
        with pytest.raises(ValueError, match="and its mask"):
            Rows(rows.mask, rows.count, rows.chosen).where()

    def test_positions_that_moved_afterwards(self, model, batch):
        padded = copy.copy(pad(batch, roomy(batch)))
        padded.pos = padded.pos + 0.1
        with default_dtype(torch.float64), pytest.raises(ValueError, match="do not belong to its"):
            model(padded)
