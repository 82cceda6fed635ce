"""A run's metrics as one JSON object per line, next to its checkpoints, whatever logger the run uses."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dens_plugin.disk import trouble

FILE_NAME = "history.jsonl"
WEIGHTS, SOURCE = "weights", "src"  # of a validation that is no part of a training: which weights, and which data


class HistoryLogger:
    """Passes everything to fairchem's logger and keeps validation and printed training metrics in a file.

    What cannot be written is told once of each of the two, and again after it went well: no run ends by its logging.

    Args:
        logger: fairchem's.
        path: the file to append to.
        every: training metrics are kept at steps that this number divides.
    """

    def __init__(self, logger: Any, path: Path, every: int) -> None:
        self._logger = logger
        self._path = path
        self._every = every
        self._failing: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def log(self, update_dict: dict[str, Any], step: int, split: str = "") -> None:
        """Log metrics of one step of one split."""
        with self._spared("the run's logger", self._path.parent):
            self._logger.log(update_dict, step=step, split=split)
        if split != "train" or step % self._every == 0:
            self._append({"split": split, "step": step, "time": time.time(), **_plain(update_dict)})

    def note(self, row: dict[str, Any]) -> None:
        """Keep something in the file alone, beside the metrics of the same split and step."""
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        with self._spared(f"'{self._path}'", self._path.parent), self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def _spared(self, where: str, folder: Path) -> Iterator[None]:
        """Within the context, an error is told and no more: a full disk is no reason to lose the weights."""
        try:
            yield
        except Exception as error:  # tensorboard raises whatever its thread met, wandb what the network did
            if where not in self._failing:
                logging.error(f"Metrics could not be written to {where} ({trouble(folder, error)}); the run goes on.")
            self._failing.add(where)
        else:
            self._failing.discard(where)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history file; where a resumed run repeated a step, its last word counts.

    Raises:
        FileNotFoundError: if the run has no history.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no history at '{path}'; give a run's checkpoint folder, of dens_plugin.DeNSTrainer")
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    lines = path.read_text(errors="replace").splitlines()
    damaged = []
    for number, line in enumerate(lines, start=1):
        row = _parsed(line)
        if row is None:
            damaged.append(number)
        else:
            key = (row["split"], row["step"])
            rows[key] = {**rows.get(key, {}), **row}
    if damaged not in ([], [len(lines)]):  # the last line may be cut, of a run that was killed while writing it
        logging.warning(f"Lines of '{path}' are damaged and left out: {', '.join(map(str, damaged))}.")
    return list(rows.values())


def _parsed(line: str) -> dict[str, Any] | None:
    """The row of a line; None for a line that is cut or damaged."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("split"), str) and isinstance(row.get("step"), (int, float))
    return row if is_row and (row["split"] != "train" or "time" in row) else None


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, (int, str)) else float(value) for key, value in metrics.items()}
