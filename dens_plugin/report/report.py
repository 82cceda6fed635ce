"""``dens report RUN...``: learning curves, parity plots, errors by element, corrupted structures and a table.

With ``--splits`` also, or only, the errors over the validation sub-splits beside the paper's, and with ``--molecules``
those on MD17's test sets.

Everything lands in one folder: ``report.html``, which holds its images, the same images as PNG files, ``table.txt``,
and the predictions, so that a second report of the same checkpoints is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from dens_plugin.checks.objective import objective_from_config
from dens_plugin.data.output import require_folder
from dens_plugin.leaderboard.layout import paths_by_split
from dens_plugin.report import error_plots, paper_tables, plots, relatives
from dens_plugin.report.corruptions import corrupted_structures
from dens_plugin.report.page import Picture, html_page
from dens_plugin.report.paper_tables import molecule_table, read_molecule_errors
from dens_plugin.report.predictions import PredictionCache, Predictions, dataset_of
from dens_plugin.report.readiness import warning
from dens_plugin.report.relatives import relatives_table
from dens_plugin.report.runs import Run, find_runs, grouped
from dens_plugin.report.splits import PAPER, SplitErrors, missing_metrics, read_split_errors, split_table
from dens_plugin.report.tables import Table, gain_table, group_table, repeated_seeds, run_table
from dens_plugin.report.verdict import verdicts
from dens_plugin.settings import count, require_one_of

_SPLITS = ("val", "test")
_MAX_STRUCTURES = 2000
_DPI = 200
_OF_COLUMNS = "COLUMN=VALIDATION, for example aspirin=runs/checkpoints/2026-01-31-12-00-00-000-ndem_aspirin"
_OF_MOLECULES = "MOLECULE=VALIDATION, for example ethanol=runs/checkpoints/2026-01-31-12-00-00-000-dens_ethanol"


class Report(NamedTuple):
    """What was written.

    Attributes:
        verdict: sentences above the tables: who won, and whether that can be judged.
        page: ``report.html``.
        tables: also in ``table.txt``.
        pictures: the PNG files, with titles and captions.
        notes: what is missing and why.
    """

    verdict: list[str]
    page: Path
    tables: list[Table]
    pictures: list[Picture]
    notes: list[str]


class _Drawing(NamedTuple):
    """A figure before it is saved; ``name`` is the file's without ``.png``."""

    name: str
    figure: Figure | None
    title: str
    caption: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``dens report``."""
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="a run's checkpoint folder, or RUN_DIR for all of its runs"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        action="append",
        default=[],
        metavar="SPLIT=VALIDATION",
        help="a model's validations on id, ood_ads, ood_cat and ood_both (OC22: id, ood), the checkpoint folders of "
        "`dens validate` runs; once for each model",
    )
    parser.add_argument(
        "--molecules",
        nargs="+",
        action="append",
        default=[],
        metavar="MOLECULE=VALIDATION",
        help="a model's validations on the test sets of MD17's molecules, likewise; as many of them as there are",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        action="append",
        default=[],
        metavar="COLUMN=VALIDATION",
        help="a model's validations for columns of NDeM's and denoise pre-training's tables (aspirin, mu, ani1x), "
        "likewise; with --paper",
    )
    parser.add_argument(
        "--paper",
        choices=[*sorted(PAPER), *sorted(paper_tables.PAPER), *sorted(relatives.PAPER)],
        help="figures to put beside those of --splits; those called md17-... beside those of --molecules, ndem-... and "
        "pretrain-... beside those of --columns, or alone",
    )
    parser.add_argument("--out", default="report", metavar="DIR", help="folder to write to (default: %(default)s)")
    parser.add_argument("--split", choices=_SPLITS, default="val", help="data to predict (default: %(default)s)")
    parser.add_argument(
        "--max-structures",
        type=int,
        default=_MAX_STRUCTURES,
        metavar="N",
        help="structures to predict at most (default: %(default)s)",
    )
    parser.add_argument("--no-predictions", action="store_true", help="curves and table only; needs no data")
    parser.add_argument("--seed", type=int, help="of the noise in the picture of structures (default: the run's own)")


def run(args: argparse.Namespace) -> None:
    """Write a report and print its tables."""
    report = write_report(
        args.runs,
        args.out,
        split=args.split,
        max_structures=args.max_structures,
        with_predictions=not args.no_predictions,
        seed=args.seed,
        splits=[paths_by_split(arguments, "--splits") for arguments in args.splits],
        molecules=[paths_by_split(arguments, "--molecules", form=_OF_MOLECULES) for arguments in args.molecules],
        columns=[paths_by_split(arguments, "--columns", form=_OF_COLUMNS) for arguments in args.columns],
        paper=args.paper,
    )
    print(_text(report))
    print(f"Report: {report.page}")


def write_report(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "val",
    max_structures: int = _MAX_STRUCTURES,
    with_predictions: bool = True,
    seed: int | None = None,
    splits: Sequence[Mapping[str, str | Path]] = (),
    molecules: Sequence[Mapping[str, str | Path]] = (),
    columns: Sequence[Mapping[str, str | Path]] = (),
    paper: str | None = None,
) -> Report:
    """Write a report of some runs, of models' errors over validation sub-splits or molecules, or of all of them.

    Args:
        paths: checkpoint folders, or folders with ``checkpoints/``.
        out: folder to write to; made where needed.
        split: ``val`` or ``test``, the data to predict.
        max_structures: structures to predict at most.
        with_predictions: whether to run the models; without, no data are needed.
        seed: of the noise in the picture of structures; that of the run by default.
        splits: for each model sub-split -> checkpoint folder of its validation.
        molecules: for each model molecule of MD17 -> checkpoint folder of its validation on the test set.
        columns: for each model column of a relative's table -> checkpoint folder of its validation.
        paper: the paper's figures to put beside them, a key of `splits.PAPER`, `paper_tables.PAPER` or
            `relatives.PAPER`; the last also alone.

    Raises:
        FileNotFoundError: for a path without runs, or data that are not there.
        ValueError: for a broken checkpoint or data set, or an impossible option.
    """
    require_one_of(split, _SPLITS, "--split")
    count(max_structures, "--max-structures", least=1)
    if not (paths or splits or molecules or paper in relatives.PAPER):
        raise ValueError("nothing to report: give a RUN, or --splits id=... ood_ads=... ood_cat=... ood_both=...")
    _require_beside(paper, splits=splits, molecules=molecules, columns=columns)
    out = Path(out)
    require_folder(out, "--out")
    found = find_runs(paths)
    runs, models = [run for run in found if run.is_training], [read_split_errors(folders) for folders in splits]
    paper_rows = [split_table(models, paper=paper if paper in PAPER else None)] if models else []
    if molecules:
        errors = [read_molecule_errors(folders) for folders in molecules]
        paper_rows.append(molecule_table(errors, paper=paper if paper in paper_tables.PAPER else None))
    if paper in relatives.PAPER:
        paper_rows.append(relatives_table(columns, paper))
    out.mkdir(parents=True, exist_ok=True)
    notes = [*_notes(runs), *_validation_notes(found), *_split_notes(models)]
    predictions = _predictions(runs, out, split=split, max_structures=max_structures) if with_predictions else {}
    drawings = [*_curves(runs), *_parity_and_elements(runs, predictions, split)]
    if with_predictions:
        drawings.append(_structures(runs, seed))
    pictures = [picture for picture in (_saved(drawing, out) for drawing in drawings) if picture is not None]
    made = [make(runs, predictions, split=split) for make in (run_table, group_table, gain_table) if runs]
    tables = [*(table for table in made if table is not None), *paper_rows]
    verdict = [*verdicts(runs, predictions, split=split if predictions else "val")]
    if len(grouped(runs)) > 1:
        verdict += filter(None, [warning(runs)])
    report = Report(verdict, out / "report.html", tables, pictures, notes)
    report.page.write_text(html_page(verdict, tables, pictures, notes), encoding="utf-8")
    (out / "table.txt").write_text(_text(report) + "\n", encoding="utf-8")
    return report


def _require_beside(paper: str | None, **given: Sequence[Mapping[str, str | Path]]) -> None:
    """Raise ValueError for a paper's table without the runs to compare with, and for columns without a table."""
    if given["columns"] and paper not in relatives.PAPER:
        raise ValueError(f"--columns are those of a table: give --paper, one of {', '.join(relatives.PAPER)}")
    if paper is None or paper in relatives.PAPER:
        return
    wanted = "molecules" if paper in paper_tables.PAPER else "splits"
    if not given[wanted]:
        raise ValueError(f"--paper {paper} is compared with --{wanted}: give those too")


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    """What the report lacks, for each run, and what makes runs hard to compare."""
    for each in runs:
        if each.checkpoint is None:
            yield f"{each.label}: no checkpoint yet, so its curves only."
        elif each.checkpoint.name == "checkpoint.pt":
            yield f"{each.label}: no best_checkpoint.pt; predictions are those of checkpoint.pt."
        if not any(row["split"] == "train" for row in each.history):
            yield f"{each.label}: it printed no training step, as there were fewer than --print-every."
        if not each.is_comparable:
            yield f"{each.label}: its objective, {each.objective}, learns no forces to compare: {each.last_errors}."
        elif not each.rows("val", "forces_mae"):
            yield f"{each.label}: not validated yet, so no validation curve."
    last = {rows[-1]["step"] for rows in (each.rows("val", "forces_mae") for each in runs) if rows}
    if len(last) > 1:
        yield f"The runs' last validations are at different steps ({min(last):,} to {max(last):,}): compare with care."
    yield from repeated_seeds(runs)


def _validation_notes(runs: Sequence[Run]) -> Iterator[str]:
    """The errors of folders that hold a validation and no training."""
    for each in runs:
        if not each.is_training:
            yield f"{each.label} is a validation, not a training: {each.last_errors}."


def _split_notes(models: Sequence[SplitErrors]) -> Iterator[str]:
    """Which columns of the table over sub-splits are not full, and how to fill them."""
    missing = missing_metrics(models)
    if missing:
        yield (
            f"Validations without {', '.join(missing)}: name them under evaluation_metrics.metrics.forces "
            "(cosine_similarity, energy_forces_within_threshold) or energy (mae) and validate again."
        )


def _predictions(runs: Sequence[Run], out: Path, *, split: str, max_structures: int) -> dict[str, Predictions]:
    """Label -> predictions, for the runs with a checkpoint that have errors to compare."""
    cache = PredictionCache(out / f"predictions_{split}.npz")
    return {
        each.label: cache.get(each, split, max_structures=max_structures)
        for each in runs
        if each.checkpoint is not None and each.is_comparable
    }


def _curves(runs: Sequence[Run]) -> Iterator[_Drawing]:
    yield _Drawing(
        "learning_curves",
        plots.learning_curves(runs),
        "Learning curves",
        "Mean absolute errors on the validation set, with averaged weights where the run keeps them. One line per run, "
        "dashed for baselines. Time includes validation and interruptions.",
    )
    yield _Drawing(
        "training_curves",
        plots.training_curves(runs),
        "Errors on training batches",
        "Running medians, over the atoms that count: forces where a method asks for them, noise where it adds some.",
    )


def _parity_and_elements(runs: Sequence[Run], predictions: Mapping[str, Predictions], split: str) -> Iterator[_Drawing]:
    name = {"val": "validation", "test": "test"}[split]
    taken = sorted({f"{len(each.energy):,} of {int(each.available):,}" for each in predictions.values()})
    data = f"{' or '.join(taken)} structures of the {name} set, free atoms only"
    yield _Drawing(
        "parity_energy", error_plots.parity(runs, predictions, "energy"), f"Energies, {name} set", f"{data}."
    )
    yield _Drawing(
        "parity_forces",
        error_plots.parity(runs, predictions, "forces"),
        f"Forces, {name} set",
        f"{data}; brighter is more components, on one logarithmic scale. The 0.2% beyond the axes count in the errors.",
    )
    yield _Drawing(
        "element_errors", error_plots.element_errors(runs, predictions), "Errors by element", f"{data}; a bar per run."
    )


def _structures(runs: Sequence[Run], seed: int | None) -> _Drawing:
    """Structures as the first run whose objective moves some trains on them."""
    figures = (_corrupted(each.config, seed) for each in runs if each.config)
    return _Drawing(
        "corrupted_structures",
        next((figure for figure in figures if figure is not None), None),
        "Corrupted structures",
        "Structures of the training set, and the same as the run trained on them in the first epochs in which they "
        "were corrupted. Lighter discs behind are the original positions; pale atoms are fixed. Thin lines are the "
        "periodic vectors of the cell.",
    )


def _corrupted(config: Mapping[str, Any], seed: int | None) -> Figure | None:
    """The picture of one run; None if its objective moves nothing, or cannot be told from its config."""
    try:
        objective = objective_from_config(config)
    except (ValueError, KeyError, TypeError):  # a config of another version
        return None
    if not objective.outputs:
        return None
    seed = (config.get("cmd") or {}).get("seed") or 0 if seed is None else seed
    return corrupted_structures(dataset_of(config, "train"), objective, seed=seed)


def _saved(drawing: _Drawing, out: Path) -> Picture | None:
    if drawing.figure is None:
        return None
    path = out / f"{drawing.name}.png"
    drawing.figure.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=0.05)
    return Picture(path, drawing.title, drawing.caption)


def _text(report: Report) -> str:
    return "\n\n".join([*report.verdict, *(table.markdown() for table in report.tables), *report.notes])
