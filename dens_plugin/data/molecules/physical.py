"""Energies as the files of the training data had them: what was subtracted before training is added to predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ase.data import chemical_symbols
from ase.formula import Formula

from dens_plugin.data.molecules.manifest import ORIGIN, Origin

_UNDETERMINED = "compositions that do not tell what its elements are worth"
_LARGE = 1.0  # eV, beyond which the mean of a normaliser is worth a warning


class PhysicalEnergies:
    """What predicted energies lack, structure by structure.

    A model trained on one formula has learned deviations from a mean: from the reference that `dens data molecules`
    subtracted, and from the mean of its normaliser, which is added once, however large the structure. Both count in
    proportion for multiples of the formula. Of other compositions nobody knows them; it is said once of each.

    Args:
        origin: of the training data; None if nobody knows it, and then nothing is added.
        mean: eV, of the energy's normaliser; 0 beside references per element, which leave none.
    """

    def __init__(self, origin: Origin | None, mean: float = 0.0) -> None:
        self._origin = origin
        self._mean = mean
        self._warned: set[tuple[str, str]] = set()

    def __eq__(self, other: object) -> bool:
        """Whether both give the same, whatever each has told."""
        if not isinstance(other, PhysicalEnergies):
            return NotImplemented
        return (self._origin, self._mean) == (other._origin, other._mean)

    @classmethod
    def of(
        cls, config: Mapping[str, Any], normalizers: Mapping[str, Any], references: Mapping[str, Any]
    ) -> PhysicalEnergies:
        """The physical energies of a trained model.

        Args:
            config: its checkpoint's.
            normalizers: of its outputs.
            references: fairchem's element references of its outputs.
        """
        known = config.get(ORIGIN)
        has_mean = "energy" in normalizers and "energy" not in references
        mean = normalizers["energy"].mean.item() if has_mean else 0.0
        return cls(None if known is None else Origin(**known), mean)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that lack something: the energy, and others with references per element."""
        return () if self._origin is None else ("energy", *(self._origin.element_references.keys() - {"energy"}))

    def missing(self, numbers: Iterable[int], output: str = "energy") -> float:
        """What to add to the prediction of an output for a structure of these atomic numbers, in its unit."""
        origin, numbers = self._origin, [int(number) for number in numbers]
        if origin is None:
            return 0.0
        reference = origin.reference_of(numbers, output)
        if reference is None:
            self._warn(numbers, output, origin.formula)
            return 0.0
        if output != "energy" or origin.formula is None or "energy" in origin.element_references:
            return reference
        share = origin.share_of(numbers)
        if share is not None:
            return reference + (share - 1) * self._mean
        if abs(self._mean) > _LARGE:
            self._warn(numbers, output, origin.formula)
        return reference

    def _warn(self, numbers: list[int], output: str, trained: str | None) -> None:
        formula = Formula.from_list([chemical_symbols[number] for number in numbers]).format("hill")
        if (formula, output) in self._warned:
            return
        self._warned.add((formula, output))
        subject = "Energies" if output == "energy" else f"Values of {output}"
        logging.warning(
            f"{subject} of {formula} are off by a constant: the model was trained on "
            + (f"{trained}, whose mean energy says nothing of {formula}" if trained else _UNDETERMINED)
            + f". Forces, and differences between structures of {formula}, are not."
        )
