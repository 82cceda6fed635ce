"""The line that a training prints: where it is, how fast, how long it still takes, and its errors."""

from __future__ import annotations

import shutil
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_WINDOW = 10  # lines that a pace is taken over, at most
_PREFIX = 10  # columns that a log line begins with
_FIRST = ("loss", "forces_mae", "energy_mae", "noise_mae")


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        step: optimiser steps done.
        last_step: steps in all.
        epoch: passes over the data done, with a fraction.
        epochs: passes in all.
        learning_rate: of the step done last.
        structures_per_second: of all ranks together; None before there is a pace.
        seconds_left: until the last step at that pace; None likewise.
    """

    step: int
    last_step: int
    epoch: float
    epochs: float
    learning_rate: float
    structures_per_second: float | None
    seconds_left: float | None


class StepLines:
    """The lines of a training, one for every printed step.

    The pace is the median over the last intervals between lines, so that an evaluation in one of them does not count.

    Args:
        last_step: steps in all.
        epochs: passes in all.
        structures_per_step: of all ranks together.
    """

    def __init__(self, *, last_step: int, epochs: float, structures_per_step: int) -> None:
        self._last_step, self._epochs, self._structures = last_step, epochs, structures_per_step
        self._intervals: deque[float] = deque(maxlen=_WINDOW)  # seconds a step
        self._before: tuple[int, float] | None = None

    def line(self, row: Mapping[str, float], now: float, *, width: int | None = None) -> str:
        """The line for a row of ``step``, ``epoch``, ``lr`` and errors, at a time in seconds."""
        step = int(row["step"])
        if self._before is not None and step > self._before[0]:
            self._intervals.append((now - self._before[1]) / (step - self._before[0]))
        self._before = (step, now)
        seconds = statistics.median(self._intervals) if self._intervals else None
        progress = Progress(
            step=step,
            last_step=self._last_step,
            epoch=row["epoch"],
            epochs=self._epochs,
            learning_rate=row["lr"],
            structures_per_second=None if not seconds else self._structures / seconds,
            seconds_left=None if seconds is None else seconds * (self._last_step - step),
        )
        errors = {name: value for name, value in row.items() if name not in ("step", "epoch", "lr")}
        first = [name for name in _FIRST if name in errors]
        return progress_line(progress, {name: errors[name] for name in dict.fromkeys([*first, *errors])}, width=width)


def progress_line(progress: Progress, errors: Mapping[str, float], *, width: int | None = None) -> str:
    """A line such as ``step 120/378  epoch 0.63/2  lr 9.1e-04  24 structures/s  5 min left  forces_mae 0.112``.

    Args:
        progress: how far the training is.
        errors: errors of the last batch or batches by name, the most important ones first.
        width: columns to fill at most; those of the terminal where not given. Errors that do not fit are left out.
    """
    width = shutil.get_terminal_size((160, 24)).columns - _PREFIX if width is None else width
    parts = [
        f"step {progress.step:,}/{progress.last_step:,}",
        f"epoch {progress.epoch:.2f}/{progress.epochs:g}",
        f"lr {progress.learning_rate:.1e}",
    ]
    if progress.structures_per_second is not None:
        parts.append(f"{progress.structures_per_second:.3g} structures/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    line = "  ".join(parts)
    for name, value in errors.items():
        part = f"  {name} {value:.4g}"
        if len(line) + len(part) > width:
            break
        line += part
    return line


def validation_line(structures: int, seconds: float, errors: Mapping[str, float], *, split: str = "val") -> str:
    """A line for an evaluation that ended: how many structures, how long, all errors."""
    told = "  ".join(f"{name} {value:.4g}" for name, value in errors.items())
    return f"{split}: {structures:,} structures in {duration(seconds)}  {told}".rstrip()


def closing_line(best: Path, metric: str, error: float | None, *, step: int | None = None) -> str:
    """What a training ends with: its best checkpoint, and the error for which it is the best.

    Args:
        best: the file.
        metric: name of the primary metric.
        error: its value on the validation set; None if nothing was validated.
        step: at which it was reached.
    """
    if error is None:
        return f"Done. The last checkpoint is {best}; nothing was validated, so there is no best one."
    reached = "" if step is None else f" at step {step:,}"
    return f"Done. Best checkpoint: {best} ({metric} {error:.4g} on the validation set{reached})"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: ``48 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
