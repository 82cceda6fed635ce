"""``dens convergence FOLDER...``: how well relaxations converged, and their IS2RE errors where the data has labels.

One row per relaxation in every table, so that models and settings stand beside each other; beside each result a
``structures.csv`` with a row per structure.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dens_plugin.data.output import require_makeable
from dens_plugin.relaxation.folder import RESULT
from dens_plugin.relaxation.minimiser import CONVERGED, NOT_FINITE, OUT_OF_MEMORY, OUT_OF_STEPS
from dens_plugin.relaxation.result import Relaxations, load_relaxations
from dens_plugin.report.tables import Table

MARKDOWN = "convergence.md"
CSV = "structures.csv"

_NONE = "–"
_PERCENTILES = (0, 10, 50, 90, 100)
_QUANTITIES = {"Steps": "{:,.0f}", "Final fmax (eV/Å)": "{:.4f}", "Energy change (eV)": "{:+.3f}"}
_METRICS = {
    "Energy labels": ("energy_count", "{:,.0f}"),
    "Energy MAE (eV)": ("energy_mae", "{:.4f}"),
    "EwT 0.02 eV (%)": ("energy_within_threshold", "{:.2%}"),
    "Position labels": ("positions_count", "{:,.0f}"),
    "Positions MAE (Å)": ("positions_mae", "{:.4f}"),
    "ADwT (%)": ("positions_average_distance_within_threshold", "{:.2%}"),
}
_COLUMNS = ("id", "atoms", "status", "steps", "energy_initial", "energy", "energy_relaxed", "fmax_initial", "fmax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``dens convergence``."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a folder that `dens relax` wrote")
    parser.add_argument("--out", metavar="OUT", help=f"folder for {MARKDOWN}; by default the first FOLDER")


def run(args: argparse.Namespace) -> None:
    """Print the tables and write them.

    Raises:
        FileNotFoundError: if a relaxation has no result yet.
        ValueError: if a result cannot be read, or the output folder cannot be made.
    """
    folders = [Path(folder) for folder in args.folders]
    out = Path(args.out) if args.out else folders[0]
    require_makeable(out)
    found = {label: load_relaxations(folder / RESULT) for label, folder in _labelled(folders).items()}
    text = "\n\n".join(table.markdown() for table in convergence_tables(found)) + "\n"
    for folder, relaxations in zip(folders, found.values(), strict=True):
        write_csv(folder / CSV, relaxations)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKDOWN).write_text(text)
    print(text)
    print(f"Wrote {out / MARKDOWN} and {CSV} beside each result")


def convergence_tables(found: Mapping[str, Relaxations]) -> list[Table]:
    """The tables of some relaxations.

    Args:
        found: label -> result, in the order of the rows.

    Returns:
        Counts, distributions over structures with a result, errors where there are labels, and the structures that
        failed where there are any.
    """
    tables = [count_table(found), distribution_table(found), error_table(found), failure_table(found)]
    return [table for table in tables if table.rows]


def count_table(found: Mapping[str, Relaxations]) -> Table:
    """How many structures there are of each status, and the share that converged."""
    statuses = (CONVERGED, OUT_OF_STEPS, NOT_FINITE, OUT_OF_MEMORY)
    rows = []
    for label, one in found.items():
        counts, total = one.counts(), len(one.ids)
        cells = (f"{counts[status]:,}" for status in statuses)
        rows.append((label, f"{total:,}", f"{100 * counts[CONVERGED] / total:.1f}", *cells))
    names = (status.replace("_", " ").capitalize() for status in statuses)
    return Table("Convergence", ("Relaxation", "Structures", "Converged (%)", *names), rows)


def distribution_table(found: Mapping[str, Relaxations]) -> Table:
    """Percentiles and mean of steps, final forces and energy changes over the structures that have a result."""
    rows: list[tuple[str, ...]] = []
    for label, one in found.items():
        known = np.isfinite(one.energy) & np.isfinite(one.fmax)
        values = (one.steps, one.fmax, one.energy - one.energy_initial)
        for (quantity, form), value in zip(_QUANTITIES.items(), values, strict=True):
            if known.any():
                cells = np.append(np.percentile(value[known], _PERCENTILES), value[known].mean())
                rows.append((label, quantity, *map(form.format, cells)))
    names = ("Minimum", *(f"{percentile} %" for percentile in _PERCENTILES[1:-1]), "Maximum", "Mean")
    return Table("Distributions over structures", ("Relaxation", "Quantity", *names), rows)


def error_table(found: Mapping[str, Relaxations]) -> Table:
    """IS2RE and IS2RS metrics of the relaxations that have labels, over structures with a label and a result."""
    rows = []
    for label, one in found.items():
        metrics = one.metrics()
        if metrics:
            known = (form.format(metrics[key]) if key in metrics else _NONE for key, form in _METRICS.values())
            rows.append((label, *(cell.rstrip("%") for cell in known)))
    return Table("Errors against relaxed references", ("Relaxation", *_METRICS), rows)


def failure_table(found: Mapping[str, Relaxations]) -> Table:
    """Structures whose energies were not finite or that did not fit into memory, by name."""
    rows: list[tuple[str, ...]] = []
    for label, one in found.items():
        failed = np.isin(one.status, (NOT_FINITE, OUT_OF_MEMORY))
        rows += [(label, str(one.ids[at]), str(one.status[at]), str(one.natoms[at])) for at in np.flatnonzero(failed)]
    return Table("Structures without a relaxed energy", ("Relaxation", "Id", "Status", "Atoms"), rows)


def write_csv(path: Path, relaxations: Relaxations) -> None:
    """Write a row per structure: eV and eV/Å, empty where unknown."""
    columns = [getattr(relaxations, {"id": "ids", "atoms": "natoms"}.get(name, name)) for name in _COLUMNS]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in zip(*(column.tolist() for column in columns), strict=True):
            writer.writerow("" if isinstance(cell, float) and np.isnan(cell) else cell for cell in row)


def _labelled(folders: list[Path]) -> dict[str, Path]:
    """Short names for folders: their own, or as much of their path as it takes to tell them apart."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ValueError("a FOLDER is given twice; give each relaxation once")
    if len({folder.name for folder in resolved}) == len(resolved):
        return dict(zip((folder.name for folder in resolved), folders, strict=True))
    common = os.path.commonpath(resolved)
    return {os.path.relpath(path, common): folder for path, folder in zip(resolved, folders, strict=True)}
