"""What predictions lack, and for which compositions nobody knows it."""

from __future__ import annotations

import pytest

from dens_plugin.data.molecules.manifest import Origin
from dens_plugin.data.molecules.physical import PhysicalEnergies

WATER, TWO_WATERS, HYDROXYL = [8, 1, 1], [1, 1, 8, 8, 1, 1], [8, 1]


def test_the_reference_and_the_mean_count_for_multiples():
    """A model adds its normaliser's mean once to a supercell, too."""
    physical = PhysicalEnergies(Origin("H2O", ["H", "O"], -2000.0), mean=-3.0)
    assert physical.missing(WATER) == -2000.0
    assert physical.missing(TWO_WATERS) == -4003.0
    total = PhysicalEnergies(Origin("H2O", ["H", "O"], 0.0), mean=-2079.0)  # of total energies, without a reference
    assert total.missing(WATER) == 0.0
    assert total.missing(TWO_WATERS) == -2079.0


@pytest.mark.parametrize(("reference", "mean"), [(-2000.0, 0.0), (0.0, -2079.0)])
def test_other_compositions_are_told_once(caplog, reference, mean):
    physical = PhysicalEnergies(Origin("H2O", ["H", "O"], reference), mean=mean)
    assert [physical.missing(HYDROXYL) for _ in range(3)] == [0.0] * 3
    assert caplog.text.count("Energies of HO are off by a constant: the model was trained on H2O") == 1


def test_small_means_are_no_matter(caplog):
    """Of energies that are referenced by somebody else, such as adsorption energies."""
    assert PhysicalEnergies(Origin("H2O", ["H", "O"], 0.0), mean=-0.7).missing(HYDROXYL) == 0.0
    assert not caplog.text


def test_references_per_element_of_every_output(caplog):
    references = {"energy": {"O": -2000.0, "H": -10.0}, "U0": {"O": -1900.0, "H": -9.0}}
    physical = PhysicalEnergies(Origin(None, ["H", "O"], 0.0, references), mean=0.3)
    assert set(physical.outputs) == {"energy", "U0"}
    assert physical.missing(HYDROXYL) == -2010.0
    assert physical.missing(HYDROXYL, "U0") == -1909.0
    assert physical.missing([6], "U0") == 0.0
    assert "Values of U0 of C are off by a constant: the model was trained on compositions that do not" in caplog.text


def test_nothing_is_added_where_nothing_is_known():
    assert PhysicalEnergies(None).missing(WATER) == 0.0
    assert PhysicalEnergies(None).outputs == ()
