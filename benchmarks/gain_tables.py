"""What `gains.py` found: errors of runs, gains over training without denoising, and whether they can be judged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from results import table

from dens_plugin.report.readiness import Progress, warning_of

BASELINE = "s2ef"
_ERRORS = ("forces", "energy")
_SAME_TIME = 0.98  # of two times: less apart than the clock of a machine with other work can tell


class Cell(NamedTuple):
    """One run.

    Attributes:
        molecule: of revised MD17.
        frames: with labels, for training.
        network: of `gain_methods.NETWORKS`.
        method: of `gain_methods.METHODS`, or a point of a search.
        seed: of frames and first weights.
        steps: of the optimiser, in whole epochs.
    """

    molecule: str
    frames: int
    network: str
    method: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.molecule}-{self.frames}-{self.network}-{self.method}-s{self.seed}-{self.steps}"

    @classmethod
    def of(cls, name: str, steps: int) -> Cell:
        """By the name of its folder, with the steps of a folder whose name does not say them."""
        molecule, frames, network, method, seed, *own = name.split("-")
        return cls(molecule, int(frames), network, method, int(seed.removeprefix("s")), int(own[0]) if own else steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run came to.

    Args:
        cell: which run.
        forces: mean absolute error of components, meV/Å.
        energy: mean absolute error, meV.
        noise: error on a corrupted copy of the validation frames over that of predicting zero; None without denoising.
        fall: the share by which the validation error fell over the last fifth of the steps.
        step_ms: milliseconds a step, on a machine that may have had other work.
        pretraining_minutes: what the first weights cost, 0 for those that were drawn.
    """

    cell: Cell
    forces: float
    energy: float
    noise: float | None = None
    fall: float | None = None
    step_ms: float | None = None
    pretraining_minutes: float = 0.0

    @property
    def minutes(self) -> float | None:
        """Of training, pre-training included."""
        return None if self.step_ms is None else self.step_ms * self.cell.steps / 60e3 + self.pretraining_minutes

    @property
    def progress(self) -> Progress:
        """How far it came."""
        return Progress(self.fall, self.noise, self.cell.seed)


def gains(results: Sequence[Finished]) -> list[dict[str, Any]]:
    """For every molecule, number of frames, network, number of steps and method: means over seeds, and gains.

    A gain is the mean over seeds that both have of how much less the error is than without denoising, in percent,
    pairwise, at as many steps, or at the next larger number that was trained; its uncertainty is the standard error of
    that mean, None for one seed. The gain at equal time is that over
    the shortest run without denoising which took as long, whatever its steps; None where there is none.
    """
    rows = []
    for key in sorted({result.cell._replace(seed=0) for result in results}):
        own = sorted(_of(key, results), key=lambda result: result.cell.seed)
        pairs = [(found, result) for result in own if (found := _as_many_steps(result, results)) is not None]
        at_equal_time = [(found, result) for result in own if (found := _as_long(result, results)) is not None]
        row: dict[str, Any] = {**key._asdict(), "seeds": [result.cell.seed for result in own]}
        del row["seed"]
        for error in _ERRORS:
            values = [getattr(result, error) for result in own]
            row |= {error: float(np.mean(values)), f"{error}_by_seed": values}
            row[f"{error}_deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            row[f"{error}_gain"], row[f"{error}_gain_error"] = _gain(pairs, error)
        row["forces_gain_at_equal_time"], row["forces_gain_at_equal_time_error"] = _gain(at_equal_time, "forces")
        for name in ("noise", "step_ms", "minutes"):
            row[name] = _mean([getattr(result, name) for result in own])
        compared = {result.cell: result for result in (*(one for one, _ in pairs), *own)}.values()
        groups = {each.cell.method: [] for each in compared}
        for each in compared:
            groups[each.cell.method].append(each.progress)
        row["not_ready"] = warning_of(groups)
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]], part: str) -> str:
    """The table of gains over errors of a part of the data, and below it which rows are not ready to be judged."""
    header = [
        *("molecule", "frames", "network", "method", "steps", "seeds", f"forces ({part}), meV/Å"),
        *(f"energy ({part}), meV", "gain in forces", "gain in energy", "gain in forces at equal time"),
        *("noise over predicting zero", "ms a step", "minutes"),
    ]
    notes: dict[str, int] = {}
    for row in rows:
        if row["not_ready"] is not None:
            notes.setdefault(row["not_ready"], len(notes) + 1)
    lines = table(header, [_cells(row, notes) for row in rows])
    return "\n".join([*lines, *(f"\n[{number}] {text}" for text, number in notes.items())])


def written(results: Iterable[Finished], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a JSON file is to hold: every run, and the table made of them."""
    runs = [dataclasses.asdict(result) | {"cell": result.cell._asdict()} for result in results]
    return {"runs": runs, "table": list(rows)}


def known_results(path: Path) -> dict[Cell, Finished]:
    """The runs of such a file, whose folders may be gone; none where there is no file.

    Raises:
        ValueError: for another file.
    """
    if not path.exists():
        return {}
    try:
        found = [Finished(**{**run, "cell": Cell(**run["cell"])}) for run in json.loads(path.read_text())["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is no table of gains: {error!r}; give --out another name") from error
    return {result.cell: result for result in found}


def _of(key: Cell, results: Iterable[Finished]) -> list[Finished]:
    """All seeds of a cell."""
    return [result for result in results if result.cell._replace(seed=key.seed) == key]


def _as_many_steps(result: Finished, results: Iterable[Finished]) -> Finished | None:
    """The run without denoising, of the same seed and data, with as many steps, or else the fewest above that."""
    wanted = result.cell._replace(method=BASELINE)
    enough = [
        other
        for other in results
        if other.cell._replace(steps=wanted.steps) == wanted and other.cell.steps >= wanted.steps
    ]
    return min(enough, key=lambda other: other.cell.steps, default=None)


def _as_long(result: Finished, results: Iterable[Finished]) -> Finished | None:
    """The shortest run without denoising, of the same seed and data, that took as long as one."""
    if result.minutes is None:
        return None
    wanted, least = result.cell._replace(method=BASELINE), _SAME_TIME * result.minutes
    long_enough = [
        other
        for other in results
        if other.cell._replace(steps=wanted.steps) == wanted and other.minutes is not None and other.minutes >= least
    ]
    return min(long_enough, key=lambda other: other.cell.steps, default=None)


def _gain(pairs: Sequence[tuple[Finished, Finished]], error: str) -> tuple[float | None, float | None]:
    """How much less the second's error is, in percent, and the standard error of that."""
    less = [100 * (1 - getattr(two, error) / getattr(one, error)) for one, two in pairs]
    mean = float(np.mean(less)) if less else None
    return mean, float(np.std(less, ddof=1) / len(less) ** 0.5) if len(less) > 1 else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cells(row: dict[str, Any], notes: dict[str, int]) -> list[str]:
    errors = [f"{row[name]:.1f} ({', '.join(f'{value:.1f}' for value in row[f'{name}_by_seed'])})" for name in _ERRORS]
    names = ("forces_gain", "energy_gain", "forces_gain_at_equal_time")
    less = ["" if row["method"] == BASELINE else _with_error(row, name) for name in names]
    measured = [_number(row["noise"], ".2f"), _number(row["step_ms"], ".1f"), _number(row["minutes"], ".1f")]
    mark = f" [{notes[row['not_ready']]}]" if row["not_ready"] is not None else ""
    what = [row["molecule"] + mark, row["frames"], row["network"], row["method"], f"{row['steps']:,}"]
    return list(map(str, [*what, len(row["seeds"]), *errors, *less, *measured]))


def _with_error(row: dict[str, Any], name: str) -> str:
    gain, error = row[name], row[f"{name}_error"]
    return "" if gain is None else f"{gain:+.1f}%" + ("" if error is None else f" ± {error:.1f}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
