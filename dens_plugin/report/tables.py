"""The numbers of a report: a row per run, the mean over seeds, and what DeNS gains; meV and meV/Å throughout."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dens_plugin.report.predictions import Predictions
from dens_plugin.report.runs import Run

MILLI = 1000.0
NONE = "–"  # in a cell whose value is not known
_HEADER = (
    "Run",
    "Objective",
    "Seed",
    "Parameters",
    "Steps",
    "Minutes",
    "Final forces MAE (meV/Å)",
    "Best forces MAE (meV/Å)",
    "Final energy MAE (meV)",
    "Energy MAE at best (meV)",
)
_TEST_HEADER = ("Test forces MAE (meV/Å)", "Test energy MAE (meV)")


class Table(NamedTuple):
    """Cells as text.

    Attributes:
        title: what the table shows.
        header: one name per column.
        rows: as long as the header.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """As Markdown, its columns aligned."""
        cells = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        head, *body = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells)
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([f"{self.title}\n", head, rule, *body])


class Errors(NamedTuple):
    """A run's mean absolute errors, in meV and meV/Å; None where the run does not know them.

    Attributes:
        final_forces: of the last validation.
        best_forces: of the validation with the lowest one.
        final_energy: of the last validation.
        best_energy: of the validation with the lowest error of the forces.
        test_forces: of the checkpoint on the test set.
        test_energy: of the checkpoint on the test set.
    """

    final_forces: float | None = None
    best_forces: float | None = None
    final_energy: float | None = None
    best_energy: float | None = None
    test_forces: float | None = None
    test_energy: float | None = None


def errors_of(run: Run, test: Predictions | None = None) -> Errors:
    """A run's errors, from its history and its predictions for the test set."""
    rows = run.rows("val", "forces_mae")
    errors = Errors()
    if rows:
        best = min(rows, key=lambda row: row["forces_mae"])
        errors = Errors(
            final_forces=MILLI * rows[-1]["forces_mae"],
            best_forces=MILLI * best["forces_mae"],
            final_energy=_milli(rows[-1], "energy_mae"),
            best_energy=_milli(best, "energy_mae"),
        )
    if test is not None:
        errors = errors._replace(test_forces=MILLI * test.forces_mae, test_energy=MILLI * test.energy_mae)
    return errors


def run_table(runs: Sequence[Run], predictions: Mapping[str, Predictions], *, split: str) -> Table:
    """One row per run.

    Args:
        runs: in the order of the rows.
        predictions: by label; runs without a checkpoint have none.
        split: of the predictions; ``test`` adds two columns.
    """
    header = _HEADER + _TEST_HEADER if split == "test" else _HEADER
    rows = []
    for run in runs:
        predicted = predictions.get(run.label)
        errors = errors_of(run, predicted if split == "test" else None)
        last = max(run.history, key=lambda row: row["step"])
        rows.append(
            (
                run.label,
                run.objective,
                NONE if run.seed is None else str(run.seed),
                NONE if predicted is None else f"{int(predicted.parameters):,}",
                f"{last['step']:,}",
                f"{run.minutes(last['time']):.1f}",
                *map(_number, errors[: len(header) - 6]),
            )
        )
    return Table("Runs (validation errors unless said otherwise)", header, rows)


def group_table(runs: Sequence[Run], predictions: Mapping[str, Predictions], *, split: str) -> Table:
    """One row per configuration: mean ± sample standard deviation over its seeds; arguments as for `run_table`."""
    names = (_HEADER + _TEST_HEADER if split == "test" else _HEADER)[6:]
    rows = []
    for group, members in grouped(runs).items():
        errors = _all_errors(members, predictions, split)
        cells = (_mean_and_deviation(column) for column in list(zip(*errors, strict=True))[: len(names)])
        rows.append((group, members[0].objective, str(len(_seeds(members))), *cells))
    return Table(
        "Configurations (mean ± standard deviation over seeds)", ("Configuration", "Objective", "Seeds", *names), rows
    )


def repeated_seeds(runs: Iterable[Run]) -> Iterator[str]:
    """Which configurations have a seed several times: such runs are one and count as one."""
    for group, members in grouped(runs).items():
        for labels in _seeds(members).values():
            if len(labels) > 1:
                names = ", ".join(run.label for run in labels)
                yield f"{group}: {names} have one seed; their mean counts as one run, and tells nothing of the spread."


def gain_table(runs: Sequence[Run], predictions: Mapping[str, Predictions], *, split: str) -> Table | None:
    """How much lower the mean errors of each DeNS configuration are than those of each S2EF one on the same data.

    Returns:
        A table of 100 (s2ef - dens) / s2ef in %, or None where nothing can be compared.
    """
    names = (_HEADER + _TEST_HEADER if split == "test" else _HEADER)[6:]
    groups = grouped(runs)
    rows = []
    for name, ours in groups.items():
        for other, theirs in groups.items():
            if _comparable(ours, theirs):
                means = (_means(_all_errors(members, predictions, split)) for members in (ours, theirs))
                gains = [_gain(*pair) for pair in zip(*means, strict=True)]
                rows.append((name, other, *gains[: len(names)]))
    header = ("With DeNS", "Without", *(name.split(" (")[0] for name in names))
    return Table("Gain of DeNS (% lower error; negative where it is higher)", header, rows) if rows else None


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group -> its runs, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def _comparable(ours: Sequence[Run], theirs: Sequence[Run]) -> bool:
    """Whether these are DeNS and S2EF, and not known to have other data."""
    data = {run.data for run in (*ours, *theirs) if run.config}
    return (ours[0].objective, theirs[0].objective) == ("dens", "s2ef") and len(data) <= 1


def _all_errors(runs: Sequence[Run], predictions: Mapping[str, Predictions], split: str) -> list[Errors]:
    """Of each seed, the mean over its runs."""
    return [
        _means([errors_of(run, predictions.get(run.label) if split == "test" else None) for run in members])
        for members in _seeds(runs).values()
    ]


def _seeds(runs: Iterable[Run]) -> dict[int | str, list[Run]]:
    """Seed -> its runs, one in general; a run whose seed nobody knows has one of its own."""
    seeds: dict[int | str, list[Run]] = {}
    for run in runs:
        seeds.setdefault(run.label if run.seed is None else run.seed, []).append(run)
    return seeds


def _means(errors: Sequence[Errors]) -> Errors:
    known = ([value for value in column if value is not None] for column in zip(*errors, strict=True))
    return Errors(*(statistics.mean(values) if values else None for values in known))


def _mean_and_deviation(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return _number(known[0]) if known else NONE
    return f"{_number(statistics.mean(known))} ± {_number(statistics.stdev(known))}"


def _gain(ours: float | None, theirs: float | None) -> str:
    return NONE if ours is None or not theirs else f"{100 * (theirs - ours) / theirs:+.1f}"


def _milli(row: Mapping[str, Any], metric: str) -> float | None:
    return MILLI * row[metric] if metric in row else None


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"
