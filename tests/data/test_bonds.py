"""Positions in bohr that are taken for Å."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.cluster import Octahedron
from ase.collections import g2

from dens_plugin.data.bonds import in_bohr, middle_of, stretch


def middle(frames, factor=1.0):
    return middle_of(stretch(each.numbers, factor * each.positions, each.pbc) for each in frames)


def test_molecules_are_told_apart_by_their_bonds():
    """All of the G2 set, which has radicals and salts."""
    molecules = [molecule(name) for name in g2.names if len(molecule(name)) > 1]
    assert in_bohr(middle(molecules)) is None
    assert all(in_bohr(middle([each])) is None for each in molecules)
    told = [in_bohr(middle([each], 1 / units.Bohr)) is not None for each in molecules]
    assert np.mean(told) > 0.9
    assert "1.9" in in_bohr(middle(molecules, 1 / units.Bohr))


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu", cubic=True),
        bulk("NaCl", "rocksalt", a=5.64, cubic=True),
        bulk("Cs", cubic=True),
        Octahedron("Au", 4),
        Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]),
        Atoms("H", [[0, 0, 0]]),
    ],
    ids=["copper", "salt", "caesium", "a cluster", "argon", "an atom"],
)
def test_what_is_no_molecule_is_not_doubted(atoms):
    assert in_bohr(middle([atoms])) is None
