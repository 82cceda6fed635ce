"""What is added to predictions again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from ase import Atoms

from dens_plugin.data.molecules.manifest import FILE_NAME, ORIGIN, Origin, origin_by_looking, origin_of
from dens_plugin.data.molecules.physical import PhysicalEnergies

WATER, TWO_WATERS, METHANE = [8, 1, 1], [1, 1, 8, 8, 1, 1], [6, 1, 1, 1, 1]


def test_a_mean_counts_for_multiples_of_its_formula():
    origin = Origin("H2O", ["H", "O"], -2000.0)
    assert origin.reference_of(WATER) == -2000.0
    assert origin.reference_of(TWO_WATERS) == -4000.0
    assert origin.reference_of([8, 1]) is None
    assert origin.reference_of([*WATER, 6]) is None
    assert Origin("H4O2", ["H", "O"], -4000.0).reference_of(WATER) == -2000.0


@pytest.mark.parametrize("formula", ["H2O", None])
def test_without_a_reference_nothing_is_added(formula):
    assert Origin(formula, ["H", "O"], 0.0).reference_of(METHANE) == 0.0


def test_references_of_elements():
    origin = Origin(None, ["C", "H"], 0.0, {"energy": {"C": -1000.0, "H": -10.0}, "U0": {"C": -900.0, "H": -9.0}})
    assert origin.reference_of(METHANE) == -1040.0
    assert origin.reference_of(METHANE, "U0") == -936.0
    assert origin.reference_of(METHANE, "gap") == 0.0
    assert origin.reference_of(WATER) is None


def test_compositions_that_the_fit_could_not_see():
    """Alkenes alone do not tell what a carbon and what two hydrogens are worth."""
    references = {"energy": {"C": -1.0, "H": -0.5}}
    origin = Origin(None, ["C", "H"], 0.0, references, [{"C": 2 / 5**0.5, "H": -1 / 5**0.5}])
    assert origin.reference_of([6, 6, 1, 1, 1, 1]) == pytest.approx(-4.0)
    assert origin.reference_of(METHANE) is None


def test_manifests_of_older_versions(tmp_path):
    content = {"formula": "H2O", "elements": ["H", "O"], "reference_energy_ev": -1.0}
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    assert origin_of(tmp_path / "train") == Origin("H2O", ["H", "O"], -1.0, {}, [])


class Records(list):
    """Structures of these symbols, counted as they are read."""

    def __init__(self, symbols):
        super().__init__(SimpleNamespace(atomic_numbers=Atoms(each).numbers) for each in symbols)
        self.read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("symbols", "formula", "elements"),
    [
        (["OH2"] * 5, "H2O", ["H", "O"]),
        (["OH2", "CO"], None, ["C", "H", "O"]),
        (["OH2"] * 10_000, "H2O", ["H", "O"]),
    ],
)
def test_a_set_without_a_manifest_is_looked_at(symbols, formula, elements):
    records = Records(symbols)
    origin = origin_by_looking(records)[ORIGIN]
    assert (origin["formula"], origin["elements"], origin["reference"]) == (formula, elements, 0.0)
    assert records.read <= 500


def test_a_large_set_of_several_formulas_says_nothing():
    records = Records(["OH2", "CO"] * 5_000)
    assert origin_by_looking(records) == {}
    assert records.read < 100


def test_a_checkpoint_without_a_manifest_warns_of_another_formula(caplog):
    """By the mean of its normaliser, which says nothing of other compositions."""
    origin = Origin(**origin_by_looking(Records(["OH2"] * 3))[ORIGIN])
    physical = PhysicalEnergies(origin, mean=-470.0)
    assert physical.missing([8, 1, 1]) == 0
    assert physical.missing([8, 1, 1] * 2) == -470.0
    assert not caplog.text
    assert physical.missing([8, 1]) == 0
    assert "Energies of HO are off by a constant: the model was trained on H2O" in caplog.text
