"""Errors over the validation sub-splits and their average, with the paper's figures beside them.

The results of a model are four runs of `dens validate`, one for each of OC20's sub-splits (two for OC22), whose
checkpoint folders hold a history with one validation each. The average is over the splits, whatever their sizes, as
in the paper.

References:
    Liao, Smidt, Shuaibi and Das, https://arxiv.org/abs/2403.09549, Tables 1(a), 2 and 3.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.leaderboard.layout import OC20_SPLITS, OC22_SPLITS
from dens_plugin.report.runs import MILLI, Run, only_run
from dens_plugin.report.tables import NONE, Table
from dens_plugin.settings import suggestion

AVERAGE = "average"
_HEADER = ("Model", "Split", "Energy MAE (meV)", "Forces MAE (meV/Å)", "Forces cosine", "EFwT (%)")
_METRICS = {  # fairchem's names -> factor and format of the cell
    "energy_mae": (MILLI, "{:.1f}"),
    "forces_mae": (MILLI, "{:.2f}"),
    "forces_cosine_similarity": (1.0, "{:.4f}"),
    "energy_forces_within_threshold": (100.0, "{:.2f}"),
}
_SAME = 1e-6  # relative; two sets of structures do not agree so well
_HOW = (
    "dens validate --config-yml C --checkpoint P --dataset.val.src=SPLIT --dataset.val.sample_n=null "
    "--identifier NAME_SPLIT"
)


class PaperRow(NamedTuple):
    """A row of the paper.

    Attributes:
        model: with parameters or epochs where the table has several.
        errors: split or ``average`` -> MAE of the energy in meV and of the forces in meV/Å.
    """

    model: str
    errors: Mapping[str, tuple[float, float]]


def _averages(*rows: tuple[str, float, float]) -> list[PaperRow]:
    return [PaperRow(model, {AVERAGE: (energy, forces)}) for model, energy, forces in rows]


PAPER = {
    "oc20-2m": _averages(
        ("EquiformerV2, 12 epochs", 285, 20.46),
        ("EquiformerV2 + DeNS, 12 epochs", 269, 19.09),
        ("EquiformerV2, 20 epochs", 280, 19.78),
        ("EquiformerV2 + DeNS, 20 epochs", 260, 18.58),
        ("EquiformerV2, 30 epochs", 278, 19.42),
        ("EquiformerV2 + DeNS, 30 epochs", 251, 18.02),
    ),
    "oc20-all-md": _averages(
        ("eSCN L=6 K=20", 243, 17.1),
        ("EquiformerV2, 31M", 232, 16.3),
        ("EquiformerV2, 153M", 227, 15.0),
        ("EquiformerV2 + DeNS, 160M", 222, 14.0),
    ),
    "oc22": [
        PaperRow("EquiformerV2, 122M", {"id": (433, 22.88), "ood": (629, 30.70)}),
        PaperRow("EquiformerV2 + DeNS, 127M", {"id": (391.6, 20.66), "ood": (533.0, 27.11)}),
    ],
}
_TABLES = {"oc20-2m": "Table 1(a)", "oc20-all-md": "Table 2", "oc22": "Table 3"}


class SplitErrors(NamedTuple):
    """A model's results.

    Attributes:
        model: its label.
        errors: split -> fairchem's metrics of its validation, in eV and eV/Å.
    """

    model: str
    errors: Mapping[str, Mapping[str, Any]]

    def mean(self, metric: str) -> float | None:
        """Over the splits; None where one does not have the metric."""
        if not all(metric in row for row in self.errors.values()):
            return None
        return statistics.mean(float(row[metric]) for row in self.errors.values())


def read_split_errors(folders: Mapping[str, str | Path]) -> SplitErrors:
    """A model's results from the folders of its validations.

    Args:
        folders: split -> checkpoint folder of a `dens validate` run.

    Raises:
        FileNotFoundError: for a folder that does not exist or holds no history.
        ValueError: for missing or unknown splits, a folder of several runs or without a validation, or results that are
            not of one checkpoint on different data.
    """
    order = _complete(folders)
    runs = {split: only_run(folders[split], f"--splits {split}") for split in order}
    errors = {split: _last_validation(run, split) for split, run in runs.items()}
    _require_one_checkpoint(errors)
    _require_different_data(errors)
    return SplitErrors(_model_name(runs[order[0]].label, order[0]), errors)


def split_table(models: Sequence[SplitErrors], *, paper: str | None = None) -> Table:
    """A row per model and split, the average over splits, and the paper's rows.

    Args:
        models: in the order of the rows.
        paper: a key of :data:`PAPER`; None for none.

    Raises:
        ValueError: for an unknown ``paper``, or one of other splits than a model's.
    """
    rows = []
    for model in models:
        averages = {metric: model.mean(metric) for metric in _METRICS}
        rows += [(model.model, split, *_cells(row)) for split, row in model.errors.items()]
        rows.append((model.model, AVERAGE, *_cells(averages)))
    title = "Validation over the sub-splits"
    if paper is not None:
        _require_comparable(models, paper)
        rows += [
            (f"{each.model} (paper)", split, f"{energy:g}", f"{forces:g}", NONE, NONE)
            for each in PAPER[paper]
            for split, (energy, forces) in each.errors.items()
        ]
        title += f"; arXiv:2403.09549, {_TABLES[paper]}, below"
    return Table(title, _HEADER, rows)


def missing_metrics(models: Sequence[SplitErrors]) -> list[str]:
    """The metrics of the table that some validation lacks, by fairchem's names."""
    rows = [row for model in models for row in model.errors.values()]
    return [metric for metric in _METRICS if any(metric not in row for row in rows)]


def _complete(folders: Mapping[str, object]) -> tuple[str, ...]:
    """The splits of OC20 or OC22, of which every one is there."""
    order = OC22_SPLITS if "ood" in folders else OC20_SPLITS
    for split in folders:
        if split not in order:
            raise ValueError(f"unknown split '{split}' in --splits; {suggestion(split, order)}")
    missing = [split for split in order if split not in folders]
    if missing:
        raise ValueError(f"--splits lacks {', '.join(missing)}: validate on each, by `{_HOW}`, and give their folders")
    return order


def _last_validation(run: Run, split: str) -> dict[str, Any]:
    rows = run.rows("val", "forces_mae")
    if not rows:
        raise ValueError(f"'{run.folder}', given for {split}, has no validation: make one by `{_HOW}`")
    bad = [metric for metric in _METRICS if not math.isfinite(rows[-1].get(metric, 0.0))]
    if bad:
        raise ValueError(f"'{run.folder}', given for {split}, has {bad[0]} {rows[-1][bad[0]]}: there is no average")
    return rows[-1]


def _require_one_checkpoint(errors: Mapping[str, Mapping[str, Any]]) -> None:
    steps = {split: row["step"] for split, row in errors.items()}
    if len(set(steps.values())) > 1:
        found = ", ".join(f"{split} {step:,}" for split, step in steps.items())
        raise ValueError(f"the splits are validations at different steps ({found}): validate one checkpoint on all")
    weights = {row["weights"]: split for split, row in errors.items() if "weights" in row}
    if len(weights) > 1:
        found = " and ".join(weights.values())
        raise ValueError(f"{found} are validations of different weights: validate one checkpoint on all splits")


def _require_different_data(errors: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise where two splits have the very same errors, as when `dataset.val.src` was not changed."""
    splits = list(errors)
    for at, split in enumerate(splits):
        for other in splits[:at]:
            own, others = errors[split], errors[other]
            if all(
                name in own and name in others and math.isclose(own[name], others[name], rel_tol=_SAME)
                for name in ("forces_mae", "energy_mae")
            ):
                raise ValueError(
                    f"splits {other} and {split} have the very same errors: was each validated on its own data "
                    "(--dataset.val.src)?"
                )


def _model_name(label: str, split: str) -> str:
    """The label of a validation without its split at the end."""
    return re.sub(rf"[-_ ](val[-_ ])?{split}$", "", label)


def _require_comparable(models: Sequence[SplitErrors], paper: str) -> None:
    if paper not in PAPER:
        raise ValueError(f"unknown --paper '{paper}'; {suggestion(paper, PAPER)}")
    splits = OC22_SPLITS if paper == "oc22" else OC20_SPLITS
    for model in models:
        if tuple(model.errors) != splits:
            raise ValueError(f"--paper {paper} is about {', '.join(splits)}, {model.model} has other splits")


def _cells(values: Mapping[str, Any]) -> list[str]:
    return [
        NONE if values.get(metric) is None else form.format(factor * values[metric])
        for metric, (factor, form) in _METRICS.items()
    ]
