"""The sentence above the tables of a report: which method won, by how much, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dens_plugin.report.predictions import Predictions
from dens_plugin.report.runs import Run, grouped
from dens_plugin.report.tables import Errors, comparable, errors_by_seed

_SURE = 2.0  # standard errors of the difference


class Comparison(NamedTuple):
    """A method against a baseline, by one error.

    Attributes:
        gain: % by which the method's mean is lower; negative where it is higher.
        uncertainty: of the gain, one standard error in %; None with one seed on either side.
        method: mean of the method, meV or meV/Å.
        baseline: mean of the baseline.
        seeds: of the method, of the baseline.
    """

    gain: float
    uncertainty: float | None
    method: float
    baseline: float
    seeds: tuple[int, int]


def compare(method: Sequence[Errors], baseline: Sequence[Errors], field: str) -> Comparison | None:
    """Compare errors by seed; None where one side does not know the error."""
    ours, theirs = (
        [value for each in side if (value := getattr(each, field)) is not None] for side in (method, baseline)
    )
    if not ours or not theirs or statistics.mean(theirs) == 0:
        return None
    mean, base = statistics.mean(ours), statistics.mean(theirs)
    uncertainty = None
    if min(len(ours), len(theirs)) > 1:
        spread = math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs))
        uncertainty = 100 * spread / base
    return Comparison(100 * (base - mean) / base, uncertainty, mean, base, (len(ours), len(theirs)))


def _known(errors: Sequence[Errors], field: str) -> list[float]:
    return [value for each in errors if (value := getattr(each, field)) is not None]


def verdicts(runs: Sequence[Run], predictions: Mapping[str, Predictions], *, split: str) -> Iterator[str]:
    """A sentence for every baseline that some method can be compared with; nothing where there is none."""
    groups = grouped(runs)
    for baseline, theirs in groups.items():
        against = {
            name: compared
            for name, ours in groups.items()
            if comparable(ours, theirs) and (compared := _by_forces(ours, theirs, predictions, split)) is not None
        }
        if against:
            best = max(against, key=lambda name: against[name].gain)
            energy = compare(
                errors_by_seed(groups[best], predictions, split),
                errors_by_seed(theirs, predictions, split),
                "test_energy" if split == "test" else "best_energy",
            )
            yield sentence(best, baseline, against[best], energy, split=split, methods=len(against))


def sentence(
    name: str, baseline: str, forces: Comparison, energy: Comparison | None, *, split: str, methods: int = 1
) -> str:
    """Who won, by how much, how sure that is."""
    data = {"val": "validation", "test": "test"}[split]
    of = f", the best of {methods} methods," if methods > 1 else ""
    if not _is_told_apart(forces):
        first = f"{name}{of} and {baseline} cannot be told apart by their forces"
    elif forces.gain > 0:
        first = f"{name}{of} won against {baseline}: its forces are {forces.gain:.0f}% better"
    else:
        first = f"{baseline} won against {name}{of}: the method's forces are {-forces.gain:.0f}% worse"
    numbers = f"{forces.method:.1f} against {forces.baseline:.1f} meV/Å on the {data} set"
    energies = (
        "" if energy is None else f", energies {abs(energy.gain):.0f}% {'better' if energy.gain > 0 else 'worse'}"
    )
    return f"{first} ({numbers}{energies}). {_how_sure(forces)}"


def _is_told_apart(compared: Comparison) -> bool:
    return compared.uncertainty is None or abs(compared.gain) > _SURE * compared.uncertainty


def _how_sure(compared: Comparison) -> str:
    """In words, with the number of seeds."""
    ours, theirs = compared.seeds
    seeds = f"{ours} seeds each" if ours == theirs else f"{ours} and {theirs} seeds"
    if compared.uncertainty is None:
        return "How sure that is cannot be said: there is only one seed" + (" each." if ours == theirs else " of one.")
    if not _is_told_apart(compared):
        difference = f"{compared.gain:+.1f} ± {compared.uncertainty:.1f}%"
        return f"The difference, {difference}, is within what seeds differ ({seeds})."
    times = abs(compared.gain) / compared.uncertainty if compared.uncertainty else math.inf
    more = "more than 10" if times > 10 else f"{times:.1f}"
    few = " Two seeds are few for that." if min(compared.seeds) < 3 else ""
    return f"The difference is {more} times its standard error ({seeds}).{few}"


def _by_forces(
    ours: Sequence[Run], theirs: Sequence[Run], predictions: Mapping[str, Predictions], split: str
) -> Comparison | None:
    field = "test_forces" if split == "test" else "best_forces"
    method, baseline = (errors_by_seed(each, predictions, split) for each in (ours, theirs))
    return compare(method, baseline, field)
