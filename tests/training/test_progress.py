"""What a training prints while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dens_plugin.training.progress import Progress, StepLines, closing_line, duration, progress_line, validation_line

HALFWAY = Progress(1200, 2400, 1.5, 3, 4.9e-4, 38.24, 700)


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


def test_pace_is_that_of_most_intervals():
    lines = StepLines(last_step=100, epochs=2, structures_per_step=8)
    row = {"epoch": 0.2, "lr": 1e-3, "grad_norm": 2.0, "forces_mae": 0.5, "loss": 1.0}
    first = lines.line({**row, "step": 10}, 0.0, width=200)
    assert first == "step 10/100  epoch 0.20/2  lr 1.0e-03  loss 1  forces_mae 0.5  grad_norm 2"
    for step, now in ((20, 5.0), (30, 65.0), (40, 70.0)):  # an evaluation of a minute in the middle
        line = lines.line({**row, "step": step}, now, width=200)
    assert "  16 structures/s  30 s left  " in line


def test_closing_line():
    path = Path("runs/checkpoints/x/best_checkpoint.pt")
    assert closing_line(path, "forces_mae", 0.0512, step=1200) == (
        f"Done. Best checkpoint: {path} (forces_mae 0.0512 on the validation set at step 1,200)"
    )
    assert "nothing was validated" in closing_line(path, "forces_mae", None)


def test_validation_line():
    assert validation_line(1200, 8.2, {"forces_mae": 0.0512}) == "val: 1,200 structures in 8 s  forces_mae 0.0512"
