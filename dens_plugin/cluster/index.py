"""Which run is which job: one JSON object per submitted run in a file of the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FILE_NAME = "submissions.jsonl"


def record(run_dir: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows, each with at least ``run`` and ``job``."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with (run_dir / FILE_NAME).open("a") as file:
        file.write(text)  # in one piece, as others may be writing too


def jobs_of(run_dir: Path, names: Sequence[str]) -> dict[str, str]:
    """Job id -> run, for all jobs that were ever submitted for some runs."""
    path = run_dir / FILE_NAME
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {row["job"]: row["run"] for row in rows if row["run"] in names}
