"""What a run prints: short prefixes, one line where fairchem writes a screenful, and no bars outside a terminal.

``LOGLEVEL=DEBUG`` in the environment shows everything, with the file and line that each message comes from.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import yaml

# What fairchem says of its own machinery, by how it begins.
_INTERNAL = (
    "Project root:",
    "Overwritten config parameters from included configs",  # which is what including is for
    "Running in local mode without elastic launch",
    "Setting env PYTORCH_CUDA_ALLOC_CONF",
    "Loading model:",
    "Loading dataset:",
    "Created BalancedBatchSampler",
    "Disabled BalancedBatchSampler because num_replicas=1",
    "log_summary for Tensorboard not supported",
    "normalizers checkpoint for targets",
    "Parameters without weight decay:",
    "rank: ",
)


class _Lines(logging.Formatter):
    """The time of day and the message; warnings and errors say that they are."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        brief = copy.copy(record)
        brief.msg, brief.args = shortened(record), ()
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{super().format(brief)}"


class _Below(logging.Filter):
    """Lets pass what is less grave than a level."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is printed."""
        return record.levelno < self._level


def set_up_logging() -> None:
    """Send information to standard output, warnings and errors to standard error, in place of fairchem's set-up."""
    level = getattr(logging, os.environ.get("LOGLEVEL", "INFO").upper(), logging.INFO)
    root = logging.getLogger()
    root.setLevel(level)
    if root.hasHandlers():
        return
    out, err = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    out.addFilter(_Below(logging.WARNING))
    err.setLevel(logging.WARNING)
    for handler in (out, err):
        if level > logging.DEBUG:
            handler.setFormatter(_Lines())
            handler.addFilter(is_of_use)
        else:
            handler.setFormatter(logging.Formatter("%(asctime)s %(pathname)s:%(lineno)d %(levelname)s: %(message)s"))
        root.addHandler(handler)


def is_of_use(record: logging.LogRecord) -> bool:
    """Whether a message is about the run rather than about fairchem's machinery."""
    is_ours_too = record.module == "base_trainer" and ", epoch: " in str(record.msg)  # `validation_line` says it
    return not (is_ours_too or str(record.msg).startswith(_INTERNAL))


def shortened(record: logging.LogRecord) -> str:
    """A message as it is, but for fairchem's two long ones."""
    if isinstance(record.msg, list):
        return f"{len(record.msg)} parameter tensors without weight decay"
    text = record.getMessage()
    return _of_config(text) if text.startswith("amp:") and "\ncmd:" in text else text


def _of_config(text: str) -> str:
    """A line for the config that fairchem prints in full."""
    config = yaml.safe_load(text)
    cmd = config["cmd"]
    return f"Run {cmd['timestamp_id']}, seed {cmd['seed']}: checkpoints in {cmd['checkpoint_dir']}"


def bars_on_terminals_only() -> None:
    """Let fairchem's progress bars be silent where standard error is a file or a pipe."""
    for name in ("fairchem.core.trainers.base_trainer", "fairchem.core.trainers.ocp_trainer"):
        module: Any = importlib.import_module(name)
        module.tqdm = _bar_of(module.tqdm)


def _bar_of(bar: Callable[..., Any]) -> Callable[..., Any]:
    def of_terminal(*args: Any, disable: bool | None = False, **kwargs: Any) -> Any:
        return bar(*args, disable=disable or None, **kwargs)  # None: only where there is no terminal

    return bar if getattr(bar, "__name__", "") == of_terminal.__name__ else of_terminal
