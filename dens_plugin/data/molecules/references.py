"""What is subtracted from energies before they are rounded: one mean, or an energy per element.

An energy of many compositions is mostly the sum of its atoms: the least-squares fit

    E ~ sum over atoms of e(element)

leaves what bonds and conformations make. A fit knows only what compositions differ in: of alkenes alone, C(n)H(2n), it
cannot tell a carbon from two hydrogens. Such directions are kept, so that nobody takes a prediction for methane for a
physical one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from dens_plugin.data.molecules.frames import Frames
from dens_plugin.data.structures import Structure
from dens_plugin.settings import number

CHOICES = "auto|mean|none|elements|EV|FILE"

_RANK = 1e-9  # of the largest eigenvalue: a direction below it no composition has


class References(NamedTuple):
    """What to subtract.

    Attributes:
        constant: eV, from every energy.
        elements: Per atom, by output and symbol.
        undetermined: Combinations of elements that the fit could not see, by symbol.
    """

    constant: float = 0.0
    elements: Mapping[str, Mapping[str, float]] = {}
    undetermined: Sequence[Mapping[str, float]] = ()

    def of(self, structure: Structure, output: str) -> float:
        """The reference of one output of a structure.

        Raises:
            ValueError: If there is none for one of its elements.
        """
        constant = self.constant if output == "energy" else 0.0
        references = self.elements.get(output)
        if references is None:
            return constant
        symbols = [chemical_symbols[number_] for number_ in structure.numbers]
        missing = sorted(set(symbols) - references.keys())
        if missing:
            raise ValueError(
                f"frame {structure.fid} has {', '.join(missing)}, for which there is no reference energy ({output}); "
                f"there are {', '.join(references)}: give --reference FILE with all elements, or a split whose "
                "training frames have them."
            )
        return constant + math.fsum(references[symbol] for symbol in symbols)


class Labels(NamedTuple):
    """The labels of a training set, before anything is subtracted.

    Attributes:
        counts: Atoms of each element of each frame, shape (n, elements).
        symbols: The elements.
        values: By output, shape (n,) each.
    """

    counts: np.ndarray
    symbols: list[str]
    values: Mapping[str, np.ndarray]


def labels_of(frames: Frames, indices: np.ndarray, symbols: Sequence[str]) -> Labels:
    """Read the energies and targets of some frames, whose elements are among ``symbols``."""
    names = ["energy", *frames.targets]
    columns = np.array([atomic_numbers[symbol] for symbol in symbols])
    counts = np.zeros((len(indices), len(symbols)))
    values = np.zeros((len(names), len(indices)))
    for row, index in enumerate(indices.tolist()):
        structure = frames.read(index)
        counts[row] = np.bincount(structure.numbers, minlength=len(chemical_symbols))[columns]
        values[:, row] = [structure.energy, *(structure.properties[name] for name in frames.targets)]
    is_there = counts.any(axis=0)
    there = [symbol for symbol, found in zip(symbols, is_there, strict=True) if found]
    return Labels(counts[:, is_there], there, dict(zip(names, values, strict=True)))


def choose(choice: str, frames: Frames, labels: Labels, *, one_formula: bool) -> References:
    """The references that were asked for.

    Args:
        choice: ``auto`` (the set's own, else the mean of one formula, else a fit), ``mean``, ``none``, ``elements`` (a
            fit), an energy in eV, or a json file with the values of elements in eV, for ``energy`` or by output.
        frames: The data.
        labels: Of the training set.
        one_formula: Whether all frames have one composition.

    Raises:
        ValueError: If it is none of these.
    """
    if choice == "none":
        return References()
    if choice == "auto" and frames.references:
        return References(elements=frames.references)
    if choice == "mean" or (choice == "auto" and one_formula):
        return References(float(labels.values["energy"].mean()))
    if choice in ("elements", "auto"):
        outputs = [name for name in labels.values if name == "energy" or name in frames.references]
        return fit(labels, outputs)
    if choice.endswith(".json"):
        elements = read(Path(choice))
        foreign = sorted(elements.keys() - labels.values.keys())
        if foreign or "energy" not in elements:
            raise ValueError(
                f"--reference {choice} has values for {', '.join(elements)}; the data have "
                f"{', '.join(labels.values)}, of which `energy` needs some."
            )
        return References(elements=elements)
    return References(number(choice, "--reference"))


def require_choice(choice: str) -> None:
    """Raise ValueError for what :func:`choose` does not know."""
    if choice in ("auto", "mean", "none", "elements"):
        return
    if choice.endswith(".json"):
        read(Path(choice))
        return
    name = "--reference (auto, mean, none, elements, an energy in eV, or a json file)"
    if not math.isfinite(number(choice, name)):
        raise ValueError(f"{name} must be finite, got {choice}")


def fit(labels: Labels, outputs: Sequence[str]) -> References:
    """Fit the values of elements by least squares, the smallest ones where compositions leave a choice."""
    products = labels.counts.T @ labels.counts
    values, vectors = np.linalg.eigh(products)
    is_seen = values > _RANK * values.max()
    inverse = (vectors[:, is_seen] / values[is_seen]) @ vectors[:, is_seen].T
    fitted = {name: inverse @ (labels.counts.T @ labels.values[name]) for name in outputs}
    return References(
        elements={name: dict(zip(labels.symbols, map(float, x), strict=True)) for name, x in fitted.items()},
        undetermined=[dict(zip(labels.symbols, map(float, v), strict=True)) for v in vectors[:, ~is_seen].T],
    )


def read(path: Path) -> dict[str, dict[str, float]]:
    """References of a json file: ``{"H": -13.6, ...}`` for energies, or such blocks by output.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it holds something else, or what is no element.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--reference {path} does not exist: give a json file with eV per element.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"--reference {path} is no json file that can be read ({error}).") from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f'--reference {path} must hold eV per element, as {{"H": -13.6, "O": -2041.3}}.')
    is_nested = all(isinstance(value, Mapping) for key, value in content.items() if not key.startswith("_"))
    blocks = content if is_nested else {"energy": content}
    return {
        name: {symbol: _value(path, symbol, value) for symbol, value in block.items()}
        for name, block in blocks.items()
        if not name.startswith("_")
    }


def _value(path: Path, symbol: str, value: object) -> float:
    if symbol not in chemical_symbols[1:]:
        raise ValueError(f"--reference {path} names an element '{symbol}' that does not exist.")
    value = number(value, f"--reference {path}, {symbol}")
    if not math.isfinite(value):
        raise ValueError(f"--reference {path}, {symbol} must be finite, got {value}")
    return value
