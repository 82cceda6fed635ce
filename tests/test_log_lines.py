"""What a run logs: short lines, and little of fairchem's machinery."""

from __future__ import annotations

import io
import logging

import pytest

from dens_plugin.log_lines import _bar_of, _Lines, is_of_use, shortened

CONFIG = "amp: false\ncmd:\n  checkpoint_dir: runs/checkpoints/x\n  seed: 3\n  timestamp_id: x\ndataset: {}\n"


def record(message, level=logging.INFO):
    return logging.LogRecord("root", level, "/a/long/path.py", 7, message, (), None)


def test_line_has_a_short_prefix():
    line = _Lines().format(record("hello"))
    assert line[8:] == " hello"
    assert _Lines().format(record("careful", logging.WARNING))[8:] == " warning: careful"


def test_config_becomes_a_line():
    assert shortened(record(CONFIG)) == "Run x, seed 3: checkpoints in runs/checkpoints/x"


def test_names_of_parameters_become_a_number():
    names = record(["a.weight", "b.bias"])
    assert _Lines().format(names).endswith("2 parameter tensors without weight decay")
    assert names.msg == ["a.weight", "b.bias"]  # other handlers get them all


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Project root: /x", False),
        ("rank: 0: Sampler created...", False),
        ("Overwritten config parameters from included configs (x)", False),
        ("Resumed", True),
    ],
)
def test_machinery_is_left_out(message, shown):
    assert is_of_use(record(message)) is shown


def test_bars_are_silent_in_a_pipe():
    told = []
    bar = _bar_of(lambda *args, disable, **kwargs: told.append(disable))
    bar([1], disable=False, file=io.StringIO())
    bar([1], disable=True)
    assert told == [None, True]
    assert _bar_of(bar) is bar
