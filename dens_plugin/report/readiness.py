"""Whether a comparison of runs is ready to be judged, in a line; if it is not, what would make it so."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dens_plugin.report.runs import Run, grouped, seed_of

FALLING = 0.03  # of the error, over the last fifth of the steps: more than this and the run is not done
LEARNT = 0.7  # of the error of predicting no noise: above this the noise has taught nothing yet
ENOUGH_SEEDS = 2
_LAST = 0.2  # share of the steps


class Progress(NamedTuple):
    """How far a run came.

    Attributes:
        fall: the share by which its error fell in the end, as `fall`.
        noise: as `noise_error`.
        seed: what tells it from other runs of the same configuration.
    """

    fall: float | None
    noise: float | None
    seed: int | str


def progress_of(run: Run) -> Progress:
    """How far a run came."""
    return Progress(fall(run), noise_error(run), seed_of(run))


def fall(run: Run, metric: str = "forces_mae") -> float | None:
    """The share by which the validation error fell over the last fifth of the steps; None if too few are known."""
    rows = run.rows("val", metric)
    if not rows:
        return None
    before = [row[metric] for row in rows if row["step"] <= (1 - _LAST) * rows[-1]["step"]]
    return None if not before else 1 - min(row[metric] for row in rows) / min(before)


def noise_error(run: Run) -> float | None:
    """The error of the noise relative to predicting none: of the last validation, else of the last training batches."""
    measured = [row for name in run.method.outputs for row in run.rows("val", f"{name}_relative")]
    if measured:
        last_step = max(row["step"] for row in measured)
        return max(
            row[key]
            for row in measured
            if row["step"] == last_step
            for key in (f"{name}_relative" for name in run.method.outputs)
            if key in row
        )
    rows = run.rows("train", "noise_mae")
    if run.method.noise is None or not rows:
        return None
    last = [row["noise_mae"] for row in rows if row["step"] > (1 - _LAST) * rows[-1]["step"]]
    return statistics.median(last) / run.method.noise


def warning(runs: Sequence[Run]) -> str | None:
    """A line for runs whose comparison is not ready to be judged; None if it is."""
    return warning_of({name: [progress_of(run) for run in members] for name, members in grouped(runs).items()})


def warning_of(groups: Mapping[str, Sequence[Progress]]) -> str | None:
    """The same for configurations by name, each with its runs, where nothing else is left of these."""
    reasons = list(_reasons(groups))
    if not reasons:
        return None
    remedies = dict.fromkeys(remedy for _, remedy in reasons)
    return f"Not ready to be judged: {'; '.join(text for text, _ in reasons)}. It takes {', and '.join(remedies)}."


def _reasons(groups: Mapping[str, Sequence[Progress]]) -> Iterator[tuple[str, str]]:
    """What is missing, and what would help."""
    falls = {name: _median(run.fall for run in members) for name, members in groups.items()}
    falling = {name: value for name, value in falls.items() if value is not None and value > FALLING}
    if falling:
        told = ", ".join(f"{name} by {100 * value:.0f}%" for name, value in falling.items())
        yield f"errors still fall over the last fifth of the steps ({told})", "longer runs"
    unknown = [name for name, value in falls.items() if value is None]
    if unknown:
        told = ", ".join(unknown)
        yield f"too few validations to tell whether errors still fall ({told})", "a smaller optim.eval_every"
    noise = {name: _median(run.noise for run in members) for name, members in groups.items()}
    unlearnt = {name: value for name, value in noise.items() if value is not None and value > LEARNT}
    if unlearnt:
        told = ", ".join(f"{name} {value:.2f}" for name, value in unlearnt.items())
        yield (
            f"the noise error is above {LEARNT:g} of predicting none ({told})",
            "runs that are long enough to learn the noise, or more of it",
        )
    few = [name for name, members in groups.items() if len({run.seed for run in members}) < ENOUGH_SEEDS]
    if few:
        yield ("one seed each" if len(few) == len(groups) else f"one seed of {', '.join(few)}", "more seeds (--seed)")


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
