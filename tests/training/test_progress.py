"""What a training prints while it runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dens_plugin.training.progress import (
    Pace,
    Progress,
    ProgressWriter,
    closing_line,
    duration,
    progress_line,
    validation_line,
)

HALFWAY = Progress(1200, 2400, 1.5, 3, 4.9e-4, 38.24, 700)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_line_says_all():
    line = progress_line(HALFWAY, {"forces_mae": 0.05123}, width=120)
    assert line == "step 1,200/2,400  epoch 1.50/3  lr 4.9e-04  38.2 structures/s  12 min left  forces_mae 0.05123"


def test_line_fits_a_terminal():
    errors = {f"error_{number}": 1.0 for number in range(50)}
    line = progress_line(HALFWAY, errors, width=100)
    assert 80 < len(line) <= 100
    assert "error_0" in line


def test_line_before_there_is_a_pace():
    line = progress_line(HALFWAY._replace(structures_per_second=None, seconds_left=None), {}, width=100)
    assert line.endswith("lr 4.9e-04")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (48.4, "48 s"), (99.9, "100 s"), (700, "12 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_pace_leaves_out_pauses():
    pace = Pace()
    assert pace.seconds_for(10) is None
    pace.start(0)
    pace.step(2)
    pace.step(4)
    pace.start(100)  # an evaluation
    pace.step(102)
    assert pace.steps_per_second == pytest.approx(0.5)
    assert pace.seconds_for(10) == pytest.approx(20)


def test_pace_follows_the_last_steps():
    pace = Pace(window=2)
    pace.start(0)
    for now in (10, 11, 12):
        pace.step(now)
    assert pace.steps_per_second == pytest.approx(1)


def test_a_pipe_is_not_flooded():
    stream = io.StringIO()
    writer = ProgressWriter(stream, every=10)
    for second in range(25):
        writer.write(f"at {second}", second)
    writer.end_line()
    assert stream.getvalue() == "at 0\nat 10\nat 20\n"


def test_a_terminal_shows_the_last_line():
    stream = Terminal()
    writer = ProgressWriter(stream)
    writer.write("a long line", 0)
    writer.write("short", 0.1)
    writer.end_line()
    assert stream.getvalue() == "\ra long line\rshort      \n"


def test_closing_line():
    path = Path("runs/checkpoints/x/best_checkpoint.pt")
    assert closing_line(path, "forces_mae", 0.0512, step=1200) == (
        f"Done. Best checkpoint: {path} (forces_mae 0.0512 on the validation set at step 1,200)"
    )
    assert "nothing was validated" in closing_line(path, "forces_mae", None)
    assert closing_line(None, "forces_mae", None) == "No checkpoint was written."


def test_validation_line():
    assert validation_line(1200, 8.2, {"forces_mae": 0.0512}) == "val: 1,200 structures in 8 s  forces_mae 0.0512"
