"""``manifest.json`` beside the data sets of ``dens data molecules``: what a model should know of its training data."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ase.data import chemical_symbols
from ase.formula import Formula

FILE_NAME = "manifest.json"
ORIGIN = "molecules"  # in the config of a checkpoint

_READ_WHOLE = 2000  # structures
_SAMPLE = 500
_NEGLIGIBLE = 1e-6  # of a composition: how much of it references may leave open


class Origin(NamedTuple):
    """What data are of, and what was subtracted from their labels.

    Attributes:
        formula: Of all their structures; None if they have several.
        elements: All of them, by symbol.
        reference: eV, subtracted from every energy.
        element_references: For each output that has some (``energy``, ``U0``, ...) the value per atom by symbol, in the
            output's unit; subtracted as well.
        undetermined: Combinations of elements, by symbol, that no composition of the training set has, so that the fit
            could not tell what they are worth; empty where references are those of free atoms.
    """

    formula: str | None
    elements: list[str]
    reference: float
    element_references: Mapping[str, Mapping[str, float]] = {}
    undetermined: Sequence[Mapping[str, float]] = ()

    def reference_of(self, numbers: Iterable[int], output: str = "energy") -> float | None:
        """What to add to a prediction for a structure to get the quantity that the file had.

        A mean of one formula counts for its multiples in proportion.

        Args:
            numbers: Atomic numbers of the structure.
            output: What was predicted.

        Returns:
            The sum of references; None if they say nothing of this composition.
        """
        counts = _counts(numbers)
        constant = self.reference if output == "energy" else 0.0
        references = self.element_references.get(output)
        if references is not None:
            if counts.keys() - references.keys() or any(_reaches(one, counts) for one in self.undetermined):
                return None
            return constant + math.fsum(count * references[symbol] for symbol, count in counts.items())
        if not constant or self.formula is None:
            return constant
        share = _share(counts, Formula(self.formula).count())
        return None if share is None else share * constant

    def share_of(self, numbers: Iterable[int]) -> float | None:
        """How many formula units atomic numbers are; None if they are none, or the data have several formulas."""
        return None if self.formula is None else _share(_counts(numbers), Formula(self.formula).count())


def origin_of(src: Any) -> Origin | None:
    """What the data set at ``dataset.*.src`` was made from; None if other programs made it, or it is gone.

    Args:
        src: A path; a list has no origin.
    """
    file = Path(src).parent / FILE_NAME if isinstance(src, (str, Path)) else None
    if file is None or not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text())
        return Origin(
            manifest["formula"],
            manifest["elements"],
            manifest["reference_energy_ev"],
            manifest.get("element_references", {}),
            manifest.get("undetermined", []),
        )
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's, or one of an older version
        return None


def with_origin(dataset: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of a trainer's config that keeps the origin of its training set; empty where none is known."""
    origin = origin_of(dataset.get("src"))
    return {} if origin is None else {ORIGIN: origin._asdict()}


def origin_by_looking(structures: Any) -> dict[str, dict[str, Any]]:
    """The entry of `with_origin` for a training set without a manifest: nothing was subtracted from its energies.

    Small sets are read whole. Of a large one some are, evenly spread, and only one formula throughout is believed.

    Args:
        structures: records with ``atomic_numbers``, by index.

    Returns:
        Nothing if a large set has several formulas.

    Raises:
        ValueError: if a record cannot be read.
    """
    total = len(structures)
    is_small = total <= _READ_WHOLE
    wanted = range(total) if is_small else sorted({at * (total - 1) // (_SAMPLE - 1) for at in range(_SAMPLE)})
    formulas: set[str] = set()
    elements: set[str] = set()
    for index in wanted:
        symbols = [chemical_symbols[int(number)] for number in _numbers(structures, index)]
        formulas.add(Formula.from_list(symbols).format("hill"))
        elements |= set(symbols)
        if len(formulas) > 1 and not is_small:
            return {}
    return {ORIGIN: Origin(next(iter(formulas)) if len(formulas) == 1 else None, sorted(elements), 0.0)._asdict()}


def _numbers(structures: Any, index: int) -> Any:
    try:
        return structures[index].atomic_numbers
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise ValueError(f"structure {index} cannot be read: {error}") from error


def _counts(numbers: Iterable[int]) -> Counter[str]:
    return Counter(chemical_symbols[int(number)] for number in numbers)


def _share(counts: Mapping[str, int], whole: Mapping[str, int]) -> float | None:
    """How many formula units a composition has; None if it is not a multiple of the formula."""
    if counts.keys() != whole.keys():
        return None
    symbol = next(iter(whole))
    proportional = all(counts[other] * whole[symbol] == counts[symbol] * whole[other] for other in whole)
    return counts[symbol] / whole[symbol] if proportional else None


def _reaches(direction: Mapping[str, float], counts: Mapping[str, int]) -> bool:
    part = math.fsum(weight * counts.get(symbol, 0) for symbol, weight in direction.items())
    return abs(part) > _NEGLIGIBLE * math.hypot(*counts.values())
