"""Whether a comparison of runs is ready to be judged, in a line; if it is not, what would make it so."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from dens_plugin.report.runs import Run, grouped, seeds_of

FALLING = 0.03  # of the error, over the last fifth of the steps: more than this and the run is not done
LEARNT = 0.7  # of the error of predicting no noise: above this the noise has taught nothing yet
ENOUGH_SEEDS = 2
_LAST = 0.2  # share of the steps


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
    reasons = list(_reasons(runs))
    if not reasons:
        return None
    remedies = dict.fromkeys(remedy for _, remedy in reasons)
    return f"Not ready to be judged: {'; '.join(text for text, _ in reasons)}. It takes {', and '.join(remedies)}."


def _reasons(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """What is missing, and what would help."""
    groups = grouped(runs)
    falls = {name: _median(fall(run) for run in members) for name, members in groups.items()}
    falling = {name: value for name, value in falls.items() if value is not None and value > FALLING}
    if falling:
        told = ", ".join(f"{name} by {100 * value:.0f}%" for name, value in falling.items())
        yield f"errors still fall over the last fifth of the steps ({told})", "longer runs"
    unknown = [name for name, value in falls.items() if value is None]
    if unknown:
        told = ", ".join(unknown)
        yield f"too few validations to tell whether errors still fall ({told})", "a smaller optim.eval_every"
    noise = {name: _median(noise_error(run) for run in members) for name, members in groups.items()}
    unlearnt = {name: value for name, value in noise.items() if value is not None and value > LEARNT}
    if unlearnt:
        told = ", ".join(f"{name} {value:.2f}" for name, value in unlearnt.items())
        yield (
            f"the noise error is above {LEARNT:g} of predicting none ({told})",
            "runs that are long enough to learn the noise, or more of it",
        )
    few = [name for name, members in groups.items() if len(seeds_of(members)) < ENOUGH_SEEDS]
    if few:
        yield ("one seed each" if len(few) == len(groups) else f"one seed of {', '.join(few)}", "more seeds (--seed)")


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
