"""The line that a training prints: where it is, how fast, how long it still takes, and its errors."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

_WINDOW = 50  # steps that a pace is taken over, at most
_PIPE_SECONDS = 10.0  # between two lines where nobody looks at a terminal


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


class Pace:
    """Steps per second over the last steps, without the time that evaluations and checkpoints take.

    Call `start` whenever training goes on after a pause and `step` after each step, with the time in seconds.
    """

    def __init__(self, window: int = _WINDOW) -> None:
        self._durations: deque[float] = deque(maxlen=window)
        self._since: float | None = None

    def start(self, now: float) -> None:
        """Note the beginning of a step; what happened since the last one does not count."""
        self._since = now

    def step(self, now: float) -> None:
        """Note the end of a step."""
        if self._since is not None:
            self._durations.append(now - self._since)
        self._since = now

    @property
    def steps_per_second(self) -> float | None:
        """The pace; None before the first step has ended."""
        total = sum(self._durations)
        return len(self._durations) / total if total > 0 else None

    def seconds_for(self, steps: int) -> float | None:
        """The time that so many steps take at this pace."""
        pace = self.steps_per_second
        return None if pace is None else steps / pace


def progress_line(progress: Progress, errors: Mapping[str, float], *, width: int | None = None) -> str:
    """A line such as ``step 120/378  epoch 0.63/2  lr 9.1e-04  24 structures/s  5 min left  forces_mae 0.112``.

    Args:
        progress: how far the training is.
        errors: errors of the last batch or batches by name, the most important ones first.
        width: columns to fill at most; those of the terminal where not given. Errors that do not fit are left out.
    """
    width = shutil.get_terminal_size((120, 24)).columns - 1 if width is None else width
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


def closing_line(best: Path | None, metric: str, error: float | None, *, step: int | None = None) -> str:
    """What a training ends with: its best checkpoint, and the error for which it is the best.

    Args:
        best: the file; None if none was written.
        metric: name of the primary metric.
        error: its value on the validation set; None if nothing was validated.
        step: at which it was reached.
    """
    if best is None:
        return "No checkpoint was written."
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


class ProgressWriter:
    """Writes lines over each other on a terminal; elsewhere a line now and then, so that logs stay short.

    Args:
        stream: where to write.
        every: seconds between two lines where the stream is no terminal.
    """

    def __init__(self, stream: TextIO, *, every: float = _PIPE_SECONDS) -> None:
        self._stream = stream
        self._every = every
        self._on_terminal = stream.isatty()
        self._last: float | None = None
        self._open = 0  # columns of a line that is not ended yet

    def is_due(self, now: float) -> bool:
        """Whether a line would be written now: making one may need numbers from a GPU."""
        return self._on_terminal or self._last is None or now - self._last >= self._every

    def write(self, line: str, now: float) -> None:
        """Show a line in place of the one before, or add one if enough time has passed."""
        if not self.is_due(now):
            return
        self._last = now
        if self._on_terminal:
            self._stream.write("\r" + line.ljust(self._open))
            self._open = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def end_line(self) -> None:
        """Leave the line as it is, so that others may write below it."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = 0
