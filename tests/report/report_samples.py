"""Run folders made by hand for tests of reports."""

from __future__ import annotations

import json


def write_run(root, name, errors, *, denoises=False):
    """A run without checkpoint: a validation with (forces, energy) errors in eV/Å and eV every 100 steps, 10 min."""
    folder = root / "checkpoints" / f"2026-01-02-03-04-05-{name}"
    folder.mkdir(parents=True)
    rows = []
    for number, (forces, energy) in enumerate(errors, start=1):
        row = {"step": 100 * number, "time": 1e9 + 600.0 * number, "forces_mae": forces, "energy_mae": energy}
        row["epoch"] = number
        rows += [{"split": "train", **row, **({"noise_mae": 0.05} if denoises else {})}, {"split": "val", **row}]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
