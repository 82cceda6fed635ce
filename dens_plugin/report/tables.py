"""The numbers of a report: a row per run, the mean over seeds, the gain over a baseline; meV and meV/Å throughout."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dens_plugin.report.predictions import Predictions
from dens_plugin.report.runs import MILLI, Run, grouped, seeds_of

FEW_EPOCHS = 5  # runs with fewer are marked
NONE = "–"  # in a cell whose value is not known
_HEADER = ("Run", "Objective", "Seed", "Parameters", "Steps", "Epochs", "Min", "F end", "F best", "E end", "E best")
_TEST_HEADER = ("F test", "E test")
_ERRORS_FROM = _HEADER.index("F end")
_LEGEND = "mean absolute errors: F forces in meV/Å, E energy in meV; best: the validation with the lowest F"
FEW_MARK = "*"  # beside the epochs of a run that had only a few


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
    """One row per run, and where all are seeds of one configuration one more with their mean.

    Args:
        runs: in the order of the rows.
        predictions: by label; runs without a checkpoint have none.
        split: of the predictions; ``test`` adds two columns.
    """
    header = _header(split)
    rows = [_row(run, predictions.get(run.label), split) for run in runs]
    if len(grouped(runs)) == 1 and len(seeds_of(runs)) > 1:
        cells = _averaged(errors_by_seed(runs, predictions, split), len(header) - _ERRORS_FROM)
        rows.append(("mean ± standard deviation", *[""] * (_ERRORS_FROM - 1), *cells))
    few = f"; {FEW_MARK} only a few epochs" if any(FEW_MARK in row[_HEADER.index("Epochs")] for row in rows) else ""
    return Table(f"Runs ({_LEGEND}{few})", header, rows)


def group_table(runs: Sequence[Run], predictions: Mapping[str, Predictions], *, split: str) -> Table | None:
    """One row per configuration: mean ± sample standard deviation over its seeds; arguments as for `run_table`.

    None where that says no more than the table of runs: one configuration, or one run of each.
    """
    groups = grouped(runs)
    if len(groups) == 1 or all(len(members) == 1 for members in groups.values()):
        return None
    names = _header(split)[_ERRORS_FROM:]
    rows = []
    for group, members in groups.items():
        cells = _averaged(errors_by_seed(members, predictions, split), len(names))
        rows.append((group, members[0].objective, str(len(seeds_of(members))), *cells))
    return Table(
        "Configurations (mean ± standard deviation over seeds)", ("Configuration", "Objective", "Seeds", *names), rows
    )


def _header(split: str) -> tuple[str, ...]:
    return _HEADER + _TEST_HEADER if split == "test" else _HEADER


def _row(run: Run, predicted: Predictions | None, split: str) -> tuple[str, ...]:
    errors = errors_of(run, predicted if split == "test" else None)
    last = max(run.history, key=lambda row: row["step"])
    epochs = epochs_of(run)
    return (
        run.label,
        run.objective,
        NONE if run.seed is None else str(run.seed),
        NONE if predicted is None else f"{int(predicted.parameters):,}",
        f"{last['step']:,}",
        NONE if epochs is None else f"{epochs:.3g}{FEW_MARK if has_few_epochs(run) else ''}",
        f"{run.minutes(last['time']):.1f}",
        *map(_number, errors[: len(_header(split)) - _ERRORS_FROM]),
    )


def _averaged(errors: Sequence[Errors], columns: int) -> list[str]:
    return [_mean_and_deviation(column) for column in list(zip(*errors, strict=True))[:columns]]


def epochs_of(run: Run) -> float | None:
    """Passes over the training data; None where the history does not say."""
    return max((row["epoch"] for row in run.history if "epoch" in row), default=None)


def has_few_epochs(run: Run) -> bool:
    """Whether a run had so few passes over its data that its errors say little of its method."""
    epochs = epochs_of(run)
    return epochs is not None and epochs < FEW_EPOCHS


def repeated_seeds(runs: Iterable[Run]) -> Iterator[str]:
    """Which configurations have a seed several times: such runs are one and count as one."""
    for group, members in grouped(runs).items():
        for labels in seeds_of(members).values():
            if len(labels) > 1:
                names = ", ".join(run.label for run in labels)
                yield f"{group}: {names} have one seed; their mean counts as one run, and tells nothing of the spread."


def gain_table(runs: Sequence[Run], predictions: Mapping[str, Predictions], *, split: str) -> Table | None:
    """How much lower the mean errors of each method are than those of each baseline on the same data.

    Returns:
        A table of 100 (baseline - method) / baseline in %, or None where nothing can be compared.
    """
    names = _header(split)[_ERRORS_FROM:]
    groups = grouped(runs)
    rows = []
    for name, ours in groups.items():
        for other, theirs in groups.items():
            if comparable(ours, theirs):
                means = (_means(errors_by_seed(members, predictions, split)) for members in (ours, theirs))
                gains = [_gain(*pair) for pair in zip(*means, strict=True)]
                rows.append((name, other, *gains[: len(names)]))
    header = ("Method", "Baseline", *names)
    return Table("Gain over the baseline (% lower error; negative where it is higher)", header, rows) if rows else None


def comparable(ours: Sequence[Run], theirs: Sequence[Run]) -> bool:
    """Whether these are a method and its baseline, on data not known to differ."""
    data = {run.data for run in (*ours, *theirs) if run.config}
    return theirs[0].method.is_baseline_of(ours[0].method) and len(data) <= 1


def errors_by_seed(runs: Sequence[Run], predictions: Mapping[str, Predictions], split: str) -> list[Errors]:
    """Of each seed, the mean over its runs."""
    return [
        _means([errors_of(run, predictions.get(run.label) if split == "test" else None) for run in members])
        for members in seeds_of(runs).values()
    ]


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
