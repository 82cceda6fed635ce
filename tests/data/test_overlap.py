"""Overlapping atoms are found in any cell, as by comparing all pairs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.neighborlist import neighbor_list

from dens_plugin.data.overlap import OVERLAP, overlap


def found(atoms):
    return overlap(atoms.positions, atoms.cell.array, atoms.pbc)


@pytest.mark.parametrize("pbc", [[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
@pytest.mark.parametrize("seed", range(5))
def test_finds_the_closest_pair(seed, pbc):
    rng = np.random.default_rng(seed)
    cell = np.diag([3.0, 4.0, 5.0]) + rng.uniform(-1.5, 1.5, (3, 3))
    atoms = Atoms("H10", positions=rng.uniform(-6, 6, (10, 3)), cell=cell, pbc=pbc)
    first, second, distances = neighbor_list("ijd", atoms, OVERLAP)
    pair = found(atoms)
    assert (pair is None) == (len(distances) == 0)
    if pair is not None:
        assert pair.distance == pytest.approx(distances.min())
        assert (pair.first, pair.second) in set(zip(first, second, strict=True))


def test_sound_structures_have_none():
    for atoms in (bulk("Al"), bulk("Al", cubic=True) * (3, 3, 3), graphene(), molecule("H2"), Atoms("H")):
        assert found(atoms) is None


def test_one_place_across_a_face():
    atoms = Atoms("Al2", positions=[[0.001, 1, 1], [3.999, 1, 1]], cell=[4, 4, 4], pbc=True)
    assert str(found(atoms)) == "atoms 0 and 1 at one place (less than 0.4 Å)"


def test_is_quick():
    """Next to a model it costs nothing: some milliseconds for thousands of atoms."""
    atoms = bulk("Al", cubic=True) * (11, 11, 11)
    start = time.perf_counter()
    found(atoms)
    assert time.perf_counter() - start < 1
