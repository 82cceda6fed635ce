"""The twelve targets of QM9: names, units, energies of free atoms, and which molecules the authors exclude.

References:
    Ramakrishnan et al., Scientific Data 1, 140022 (2014), https://doi.org/10.6084/m9.figshare.978904.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

HARTREE = 27.211386246  # eV; PyG's value, so that labels are those of other codes to the last digit
UNIT = "hartree, D, a0^3, a0^2 and cal/mol/K"


class Target(NamedTuple):
    """A label of a molecule.

    Attributes:
        column: What ``gdb9.sdf.csv`` calls it.
        factor: From the file's unit to ours.
        unit: Ours.
    """

    column: str
    factor: float
    unit: str


TARGETS = {  # in PyG's order; the raw files have r2 at the same place
    "mu": Target("mu", 1.0, "D"),
    "alpha": Target("alpha", 1.0, "a0^3"),
    "homo": Target("homo", HARTREE, "eV"),
    "lumo": Target("lumo", HARTREE, "eV"),
    "gap": Target("gap", HARTREE, "eV"),
    "r2": Target("r2", 1.0, "a0^2"),
    "zpve": Target("zpve", HARTREE, "eV"),
    "U0": Target("u0", HARTREE, "eV"),
    "U": Target("u298", HARTREE, "eV"),
    "H": Target("h298", HARTREE, "eV"),
    "G": Target("g298", HARTREE, "eV"),
    "Cv": Target("cv", 1.0, "cal/mol/K"),
}

ENERGY = "U0"  # what `energy` of a record is

_ATOMS = {  # hartree, from the authors' atomref.txt
    "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
ATOM_REFERENCES = {
    target: {symbol: HARTREE * value for symbol, value in zip("HCNOF", values, strict=True)}
    for target, values in _ATOMS.items()
}

EXCLUSIONS = "uncharacterized.txt"  # as the authors call the list, and PyG its copy
_STATED = re.compile(r"^\s*(\d[\d,]*)\s+(?:compounds|molecules)", re.IGNORECASE | re.MULTILINE)


def read_exclusions(path: Path) -> set[int]:
    """Numbers of the frames that a list excludes.

    The authors' ``uncharacterized.txt`` has a headline, then a line per molecule that begins with its number (from 1)
    and goes on with SMILES, and a last line with their count; a plain list has a number per line.

    Args:
        path: The list.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it holds no numbers, or not as many as it states.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the list of what to exclude.")
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file ({error}): give a list with a number per line.") from error
    stated = _STATED.search(text)
    lines = _STATED.sub("", text).splitlines()
    first_words = (line.split()[0].rstrip(",") for line in lines if line.strip())
    numbers = [int(word) for word in first_words if word.isdecimal()]
    if not numbers:
        raise ValueError(f"{path} has no line that begins with a number: give a list with a number per line.")
    if stated and int(stated[1].replace(",", "")) != len(numbers):
        raise ValueError(f"{path} has {len(numbers):,} numbers and states {stated[1]}: copy or download it again.")
    return set(numbers)
