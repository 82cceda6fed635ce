"""Bit for bit fairchem's search, on whatever cells and limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, graphene, mx2, nanotube
from fairchem.core.common.utils import radius_graph_pbc
from torch_geometric.data import Batch, Data

from dens_plugin import compat
from dens_plugin.backbones.neighbours import Search, with_neighbours
from dens_plugin.backbones.periodic_edges import periodic_edges
from dens_plugin.fields import NEIGHBOURS
from dens_plugin.testing import random_batch


def batch_of(*atoms, pbc=None):
    structures = [
        Data(
            pos=torch.tensor(one.positions, dtype=torch.float),
            cell=torch.tensor(one.cell.array, dtype=torch.float)[None],
            natoms=len(one),
        )
        for one in atoms
    ]
    batch = Batch.from_data_list(structures)
    if pbc is not None:
        batch.pbc = torch.tensor([pbc] * len(atoms))
    return batch


def slabs():
    """Long cells beside a small one, atoms outside of their cell, a sheared cell."""
    slab, sheared = fcc111("Cu", (3, 3, 4), vacuum=10.0), bulk("Fe").repeat((2, 1, 1))
    outside = slab.copy()
    outside.positions[3] += 2 * outside.cell[0]
    outside.positions[5] -= outside.cell[2]
    return slab, sheared, outside, bulk("Al", cubic=True)


BATCHES = {
    "random": random_batch,
    "slabs": lambda: batch_of(*slabs()),
    "alone": lambda: batch_of(slabs()[1]),
    "open": lambda: batch_of(*slabs(), pbc=[False, False, False]),
    "surface": lambda: batch_of(*slabs(), pbc=[True, True, False]),
    "atom": lambda: batch_of(bulk("Cu") * (1, 1, 1)),
    "one without atoms": lambda: batch_of(slabs()[1][:0], slabs()[1]),
}


@pytest.mark.parametrize("strictly", [True, False])
@pytest.mark.parametrize(("cutoff", "limit"), [(12.0, 20), (6.0, 12), (5.0, 500), (4.0, 1), (0.5, 20)])
@pytest.mark.parametrize("kind", BATCHES)
def test_are_fairchems(kind, cutoff, limit, strictly):
    found = periodic_edges(BATCHES[kind](), cutoff, limit, strictly=strictly)
    expected = radius_graph_pbc(BATCHES[kind](), cutoff, limit, strictly)
    assert all(torch.equal(ours, hosts) for ours, hosts in zip(found, expected, strict=True))
    assert [ours.dtype for ours in found] == [hosts.dtype for hosts in expected]


def test_flat_cells_are_left_to_fairchem():
    batch = BATCHES["alone"]()
    batch.cell[0, 2] = 0
    assert periodic_edges(batch, 6.0, 20, strictly=True) is None


@pytest.mark.parametrize("seed", range(20))
def test_of_random_structures(seed):
    found = periodic_edges(random_batch((3, 9, 1, 20), seed=seed), 6.0, 15, strictly=seed % 2 == 0)
    expected = radius_graph_pbc(random_batch((3, 9, 1, 20), seed=seed), 6.0, 15, seed % 2 == 0)
    assert all(torch.equal(ours, hosts) for ours, hosts in zip(found, expected, strict=True))


def test_leaves_its_batch_alone():
    batch = batch_of(*slabs(), pbc=[True, True, False])
    before = {key: value.clone() for key, value in batch.to_dict().items() if torch.is_tensor(value)}
    periodic_edges(batch, 6.0, 20, strictly=True)
    assert all(torch.equal(batch[key], value) for key, value in before.items())


SEARCHES = {
    "ours": lambda batch: periodic_edges(batch, 6.0, 500, strictly=True),
    "fairchem's": lambda batch: compat.radius_graph_pbc(batch, 6.0, 500, True),
}
MIXED = ([True, True, True], [False, False, False], [True, True, False], [False, True, False])


@pytest.mark.parametrize("search", SEARCHES)
def test_structures_of_a_batch_keep_their_own_periodicity(search):
    """The edges of each are those that it has alone, whatever the others are."""
    batch = batch_of(*slabs())
    batch.pbc = torch.tensor(MIXED).flatten()  # as fairchem's loaders collate it
    edges, offsets, neighbors = SEARCHES[search](batch)
    start = 0
    for index, pbc in enumerate(MIXED):
        alone = radius_graph_pbc(batch_of(slabs()[index], pbc=pbc), 6.0, 500, True)
        own = slice(sum(neighbors[:index]), sum(neighbors[: index + 1]))
        assert torch.equal(edges[:, own] - start, alone[0])
        assert torch.equal(offsets[own], alone[1])
        assert neighbors[index] == alone[2]
        start += len(slabs()[index])
    assert neighbors.unique().numel() == len(MIXED)


def test_searching_structure_by_structure_finds_the_same():
    """`use_pbc_single`, which saves memory."""
    structures = batch_of(*slabs()).to_data_list()
    for structure, pbc in zip(structures, MIXED, strict=True):
        structure.update({"pbc": torch.tensor(pbc), "atomic_numbers": torch.ones(len(structure.pos), dtype=torch.long)})
    batch = Batch.from_data_list(structures)
    searches = (Search(6.0, 500, strictly=True, use_pbc=True, use_pbc_single=single) for single in (False, True))
    together, apart = (with_neighbours(batch, search)[NEIGHBOURS] for search in searches)
    assert torch.equal(together.edge_index, apart.edge_index)
    assert torch.equal(together.cell_offsets, apart.cell_offsets)
    assert torch.equal(together.neighbors, apart.neighbors)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("sheet", [graphene(), mx2(), nanotube(4, 0, vacuum=None)], ids=["graphene", "mx2", "nanotube"])
def test_cells_without_vectors_are_completed_along_open_directions(search, sheet):
    """The same edges as in a cell with vacuum, also beside a crystal."""
    wide = sheet.copy()
    wide.center(vacuum=20.0, axis=np.flatnonzero(~sheet.pbc))
    crystal = bulk("Al", cubic=True)
    flags = torch.tensor([sheet.pbc.tolist(), [True] * 3])
    batches = batch_of(sheet, crystal), batch_of(wide, crystal)
    for batch in batches:
        batch.pbc = flags
    flat, expected = (SEARCHES[search](batch) for batch in batches)
    assert all(torch.equal(*pair) for pair in zip(flat, expected, strict=True))


def test_flat_crystals_are_refused_by_name():
    batch = batch_of(bulk("Al"), graphene())
    batch.sid = ["Al", "graphene"]
    assert periodic_edges(batch, 6.0, 20, strictly=True) is None
    with pytest.raises(ValueError, match=r"sid graphene has no volume and is periodic"):
        compat.radius_graph_pbc(batch, 6.0, 20, True)
