"""The files that a benchmark leaves: JSON with every round, a table in Markdown, a plot."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from measures import GOALS_AGAINST, ratio_cell
from plots import plot_ratios


def write(report: Mapping[str, Any], folder: Path, prefix: str) -> Path:
    """Write all three under a name with the report's date; returns the path of the JSON file."""
    path = dated(folder, prefix, report["date"])
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report) + "\n")
    if report["table"]:
        plot_ratios(report["table"], path.with_suffix(".png"), describe_machine(report["hardware"]))
    return path


def dated(folder: Path, prefix: str, date: str) -> Path:
    """The path of a JSON file; its folder exists thereafter."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{prefix}_{re.sub(r'[^0-9T]', '', date.split('+')[0])}.json"


def markdown(report: Mapping[str, Any]) -> str:
    """Conditions, the table, and what failed."""
    data = report["settings"]["data"]
    lines = [
        f"{report['settings']['model']} on {describe_machine(report['hardware'])}; {len(data['atoms'])} batches of "
        f"{data['source']}, {np.mean(data['atoms']):.0f} atoms each, {data['corrupted_share']:.3f} of the free atoms "
        "corrupted.",
        f"Medians, and how many times less `ours` costs with quartiles. Goals: against `{GOALS_AGAINST}`, required "
        "(aim), at 12 layers of the paper's width.",
        "",
        *_table(report["table"]),
        *(f"\nNot measured: {what}: {' '.join(why.split())}" for what, why in report["failures"].items()),
        *_onednn(report["runs"]),
    ]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = list(rows[0]["median"])
    others = [name for name in names if name != "ours"]
    header = ["size", "L", "layers", "ours / theirs", "cost", *names, *(f"less than {name}" for name in others), "goal"]
    return table(header, [_cells(row, names, others) for row in rows])


def _cells(row: Mapping[str, Any], names: list[str], others: list[str]) -> list[str]:
    layers = f"{row['layers']}{' (extrapolated)' if row['is_extrapolated'] else ''}"
    goal = row["goal"]
    return [
        row["size"],
        str(row["lmax"]),
        layers,
        row["compared"],
        row["measure"],
        *(f"{row['median'][name]:.4g}" for name in names),
        *(ratio_cell(row["times_less"][name]) for name in others),
        f"{goal['required']:g} ({goal['aim']:g})" if goal else "",
    ]


def _onednn(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line about matrix products on a CPU."""
    calls = {name: count for run in runs for name, count in run["onednn_calls"].items() if count}
    return [f"\nCalls of oneDNN in one of the first measure: {calls or 'none'}."] if runs else []
