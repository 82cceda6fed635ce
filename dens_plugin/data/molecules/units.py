"""Units of energy and length: named by a file, by the kind of the file, or by the user, and never guessed."""

from __future__ import annotations

from typing import NamedTuple

from ase import units

from dens_plugin.settings import suggestion

_ENERGIES = {  # the names that files and people use -> eV
    "ev": 1.0,
    "kcal/mol": units.kcal / units.mol,
    "kj/mol": units.kJ / units.mol,
    "hartree": units.Hartree,
}
_SYNONYMS = {"kcal mol-1": "kcal/mol", "kcal/(mol)": "kcal/mol", "ha": "hartree", "eh": "hartree", "a.u.": "hartree"}
_LENGTHS = {"ang": 1.0, "angstrom": 1.0, "å": 1.0, "a": 1.0, "bohr": units.Bohr, "a0": units.Bohr}

CHOICES = ("eV", "kcal/mol", "kJ/mol", "hartree", "hartree-bohr")  # the last: forces in hartree/bohr, positions in Å


class Units(NamedTuple):
    """What to multiply by to get eV, eV/Å and Å.

    Attributes:
        energy: eV per unit of the energies.
        forces: eV/Å per unit of the forces.
        length: Å per unit of the positions and of the cell.
        name: As a person calls them.
    """

    energy: float
    forces: float
    length: float
    name: str


EV = Units(1.0, 1.0, 1.0, "eV and Å")
KCAL = Units(units.kcal / units.mol, units.kcal / units.mol, 1.0, "kcal/mol and Å")


def from_choice(name: str, option: str = "--units") -> Units:
    """The units of a name; positions are in Å.

    Args:
        name: One of :data:`CHOICES`.
        option: What the user calls it, for the message.

    Raises:
        ValueError: If there is no such choice.
    """
    if name not in CHOICES:
        raise ValueError(f"unknown {option} '{name}'; {suggestion(name, CHOICES)}")
    if name == "hartree-bohr":
        return Units(units.Hartree, units.Hartree / units.Bohr, 1.0, "hartree, hartree/bohr and Å")
    energy = _ENERGIES[name.lower()]
    return Units(energy, energy, 1.0, f"{name} and Å")


def from_names(energy: str, length: str, where: str) -> Units:
    """The units that a file names, forces in its energy per its length.

    Args:
        energy: E.g. ``kcal/mol``.
        length: E.g. ``Ang``.
        where: The file, for the message.

    Raises:
        ValueError: If a name is unknown.
    """
    key = energy.strip().lower()
    key = _SYNONYMS.get(key, key)
    if key not in _ENERGIES:
        raise ValueError(f"{where} names the unit of energy '{energy}'; {suggestion(key, _ENERGIES)}")
    per_length = _LENGTHS.get(length.strip().lower())
    if per_length is None:
        raise ValueError(f"{where} names the unit of length '{length}'; {suggestion(length.lower(), _LENGTHS)}")
    return Units(_ENERGIES[key], _ENERGIES[key] / per_length, per_length, f"{energy.strip()} and {length.strip()}")


def agree(one: Units, other: Units) -> bool:
    """Whether two units are the same but for their names."""
    return all(abs(a / b - 1) < 1e-6 for a, b in zip(one[:3], other[:3], strict=True))
