"""Runs of the same identifier that came before: which of them are unfinished, so that one can go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.compat import load_checkpoint
from dens_plugin.training.checkpoints import NEWEST

_FOLDER = "checkpoints"  # in a run's folder, by fairchem


class EarlierRun(NamedTuple):
    """A run that left a checkpoint.

    Attributes:
        name: of its folder, fairchem's ``--timestamp-id``.
        step: it has done.
        epoch: it has got to.
    """

    name: str
    step: int
    epoch: float


def earlier_runs(run_dir: str | Path, identifier: str) -> Iterator[EarlierRun]:
    """The runs of an identifier in a folder, the newest first.

    Args:
        run_dir: fairchem's ``--run-dir``.
        identifier: fairchem's ``--identifier``.
    """
    newest = sorted(Path(run_dir, _FOLDER).glob(f"*/{NEWEST}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest:
        checkpoint = _readable(path.parent)
        if checkpoint is None or (checkpoint["config"].get("cmd") or {}).get("identifier") != identifier:
            continue
        yield EarlierRun(path.parent.name, checkpoint.get("step", 0), checkpoint.get("epoch", 0))


def unfinished(run_dir: str | Path, identifier: str, max_epochs: float) -> EarlierRun | None:
    """The newest run of an identifier that has epochs left; None if there is none."""
    return next((run for run in earlier_runs(run_dir, identifier) if run.epoch < max_epochs), None)


def _readable(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint of a run that can be read, without its weights."""
    for path in sorted(folder.glob("checkpoint*.pt"), key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(ValueError, OSError):
            checkpoint = load_checkpoint(path, on_demand=True)
            if "config" in checkpoint:
                return checkpoint
    return None
