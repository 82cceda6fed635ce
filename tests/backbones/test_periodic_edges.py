"""Bit for bit fairchem's search, on whatever cells and limits."""

from __future__ import annotations

import pytest
import torch
from ase.build import bulk, fcc111
from fairchem.core.common.utils import radius_graph_pbc
from torch_geometric.data import Batch, Data

from dens_plugin.backbones.periodic_edges import periodic_edges
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
def test_are_the_hosts(kind, cutoff, limit, strictly):
    found = periodic_edges(BATCHES[kind](), cutoff, limit, strictly=strictly)
    expected = radius_graph_pbc(BATCHES[kind](), cutoff, limit, strictly)
    assert all(torch.equal(ours, hosts) for ours, hosts in zip(found, expected, strict=True))
    assert [ours.dtype for ours in found] == [hosts.dtype for hosts in expected]


def test_flat_cells_are_left_to_the_host():
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


def test_leaves_mixed_boundaries_to_the_host():
    batch = batch_of(*slabs()[:2])
    batch.pbc = torch.tensor([[True, True, True], [False, False, False]])
    assert periodic_edges(batch, 6.0, 20, strictly=True) is None
