"""One limit for flat cells, wherever one is met."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from torch_geometric.data import Batch

from dens_plugin.cells import LEAST_VOLUME, flat_cells, is_flat, volume, whole_cell
from dens_plugin.compat import radius_graph_pbc
from dens_plugin.data.findings import Tally
from dens_plugin.data.molecules.checks import _require_sound
from dens_plugin.data.records import Limits, _beyond
from dens_plugin.data.structures import from_atoms
from dens_plugin.testing import random_structure

ALL = np.array([True, True, True])


def cell_of(volume_):
    return np.diag([5.0, 5.0, volume_ / 25])


def test_volume():
    rng = np.random.default_rng(0)
    for _ in range(5):
        cell = rng.normal(size=(3, 3))
        assert volume(cell) == pytest.approx(abs(np.linalg.det(cell)))


@pytest.mark.parametrize(("share", "flat"), [(0.0, True), (0.5, True), (1.5, False), (np.nan, True)])
def test_the_limit(share, flat):
    cell = cell_of(share * LEAST_VOLUME)
    assert is_flat(cell, ALL) == flat
    assert flat_cells(torch.tensor(cell)[None], torch.tensor(ALL)[None]).tolist() == [flat]


def test_open_directions_are_completed_first():
    sheet = np.diag([3.0, 3.0, 0.0])
    assert not is_flat(sheet, [True, True, False])
    assert volume(whole_cell(sheet, [True, True, False])) == pytest.approx(9)
    assert is_flat(sheet, ALL)
    assert not is_flat(np.zeros((3, 3)), [False] * 3)


def test_all_places_refuse_the_same_cell():
    """A loader, a search for neighbours, and both looks at data; the calculator's own tests have it too."""
    cell = cell_of(0.5 * LEAST_VOLUME)
    structure = random_structure(3, seed=0)
    structure.cell, structure.pbc = torch.tensor(cell, dtype=torch.float32)[None], torch.tensor([[True] * 3])
    assert "no volume" in _beyond(structure, Limits(periodic=True))
    with pytest.raises(ValueError, match="no volume"):
        radius_graph_pbc(Batch.from_data_list([structure]), 4.0, 20)
    known = from_atoms(Atoms("H2", [[0, 0, 0], [1, 0, 0]], cell=cell, pbc=True))
    with pytest.raises(ValueError, match="no volume"):
        _require_sound(known, "it")
    tally = Tally()
    tally.add(0, known)
    assert any("volume" in finding.message for finding in tally.findings())
