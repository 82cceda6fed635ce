"""Errors on MD17's molecules with the paper's figures beside them.

The results of a model are one run of `dens validate` for each molecule, on its test set, whose checkpoint folder holds
a history with one validation.

References:
    Liao, Smidt, Shuaibi and Das, https://arxiv.org/abs/2403.09549, Tables 4, 5 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.data.molecules.manifest import origin_of
from dens_plugin.report.runs import MILLI, Run, only_run
from dens_plugin.report.splits import PaperRow
from dens_plugin.report.tables import Table
from dens_plugin.settings import suggestion
from dens_plugin.training.history import SOURCE, WEIGHTS

_FORMULAS = {
    "aspirin": "C9H8O4",
    "benzene": "C6H6",
    "ethanol": "C2H6O",
    "malonaldehyde": "C3H4O2",
    "naphthalene": "C10H8",
    "salicylic_acid": "C7H6O3",
    "toluene": "C7H8",
    "uracil": "C4H4N2O2",
}
MOLECULES = tuple(_FORMULAS)
_HEADER = ("Model", "Molecule", "Energy MAE (meV)", "Forces MAE (meV/Å)")
_METRICS = ("energy_mae", "forces_mae")
_HOW = (
    "dens validate --config-yml C --checkpoint P --dataset.val.src=data/md17/MOLECULE/test --identifier MODEL_MOLECULE"
)


def _row(model: str, *figures: float) -> PaperRow:
    """A row as the paper prints it: energy and forces of each molecule in turn."""
    pairs = zip(figures[::2], figures[1::2], strict=True)
    return PaperRow(model, dict(zip(MOLECULES, pairs, strict=True)))


# fmt: off
_L2 = (5.3, 7.2, 2.2, 6.6, 2.2, 3.1, 3.3, 5.8, 3.7, 2.1, 4.5, 4.1, 3.8, 2.1, 4.3, 3.3)
_L2_DENS = (5.1, 5.7, 2.3, 6.1, 2.2, 2.6, 3.2, 4.4, 3.7, 1.7, 4.4, 3.7, 3.5, 1.9, 4.2, 3.3)
PAPER = {
    "md17-table4": [
        _row("Equiformer (L_max 2)", *_L2),
        _row("Equiformer (L_max 3)", 5.3, 6.6, 2.5, 8.1, 2.2, 2.9, 3.2, 5.4, 4.4, 2.0, 4.3, 3.9, 3.7, 2.1, 4.3, 3.4),
        _row("Equiformer (L_max 2) + DeNS", *_L2_DENS),
        _row("Equiformer (L_max 3) + DeNS",
             5.0, 5.2, 2.3, 6.1, 2.2, 2.4, 3.2, 4.1, 3.7, 1.6, 4.2, 3.2, 3.4, 1.8, 4.1, 2.9),
    ],
    "md17-table5": [
        _row("1: attention, layer normalisation", *_L2),
        _row("2: attention, layer normalisation, DeNS", *_L2_DENS),
        _row("3: layer normalisation", 5.2, 7.7, 2.4, 6.2, 2.3, 3.9, 3.3, 6.2, 3.8, 2.2, 4.1, 4.7, 3.3, 2.4, 4.2, 4.4),
        _row("4: layer normalisation, DeNS",
             5.2, 6.1, 2.4, 6.1, 2.2, 2.9, 3.2, 5.1, 3.7, 1.7, 4.2, 3.9, 3.4, 2.0, 4.2, 3.4),
        _row("5: neither", 5.3, 9.3, 2.4, 9.2, 2.3, 4.5, 3.4, 8.2, 3.7, 2.4, 4.2, 5.5, 3.3, 2.9, 4.2, 4.8),
        _row("6: neither, DeNS", 5.2, 7.3, 2.4, 8.1, 2.2, 3.4, 3.4, 6.7, 3.7, 1.9, 4.2, 4.4, 3.4, 2.2, 4.2, 3.8),
    ],
    "md17-table6": [
        _row("1: no DeNS", *_L2),
        _row("2: DeNS", *_L2_DENS),
        _row("3: DeNS without force encoding",
             8.6, 9.1, 2.3, 6.3, 2.3, 3.3, 3.2, 5.8, 7.7, 6.1, 5.2, 10.6, 3.7, 2.0, 5.5, 6.5),
        _row("4: DeNS without energy of corrupted structures",
             5.1, 5.8, 2.3, 6.1, 2.3, 2.6, 3.2, 4.5, 3.7, 1.7, 4.8, 3.6, 3.7, 1.9, 4.2, 3.3),
        _row("5: DeNS with all atoms corrupted",
             5.3, 6.9, 2.4, 6.3, 2.3, 3.2, 3.3, 5.4, 3.7, 2.0, 4.8, 4.2, 4.0, 2.0, 4.2, 3.8),
    ],
}
# fmt: on
_TABLES = {"md17-table4": "Table 4", "md17-table5": "Table 5", "md17-table6": "Table 6"}


class MoleculeErrors(NamedTuple):
    """A model's results.

    Attributes:
        model: its label.
        errors: molecule -> MAE of the energy in meV and of the forces in meV/Å.
    """

    model: str
    errors: Mapping[str, tuple[float, float]]


def read_molecule_errors(folders: Mapping[str, str | Path]) -> MoleculeErrors:
    """A model's results from the folders of its validations.

    Args:
        folders: molecule -> checkpoint folder of a `dens validate` run.

    Raises:
        FileNotFoundError: for a folder that does not exist or holds no history.
        ValueError: for an unknown molecule, a folder of several runs or without a validation, one that is of training,
            of another molecule or not of the test set, or errors that are not finite or the very same for two
            molecules.
    """
    for name in folders:
        if name not in MOLECULES:
            raise ValueError(f"unknown molecule '{name}' in --molecules; {suggestion(name, MOLECULES)}")
    runs = {name: only_run(folders[name], f"--molecules {name}") for name in MOLECULES if name in folders}
    errors = {name: _last_errors(run, name) for name, run in runs.items()}
    _require_different(errors.items())
    name, run = next(iter(runs.items()))
    return MoleculeErrors(run.label.removesuffix(name).rstrip("-_ ") or run.label, errors)


def molecule_table(models: Sequence[MoleculeErrors], *, paper: str | None = None) -> Table:
    """A row per model and molecule, and the paper's rows of the same molecules.

    Args:
        models: in the order of the rows.
        paper: a key of :data:`PAPER`; None for none.

    Raises:
        ValueError: for an unknown ``paper``, or errors that are the very same in two rows.
    """
    _require_different(item for model in models for item in model.errors.items())
    rows = [row for model in models for row in _rows(model.model, model.errors)]
    title = "MD17, test sets"
    if paper is not None:
        if paper not in PAPER:
            raise ValueError(f"unknown --paper '{paper}'; {suggestion(paper, PAPER)}")
        measured = set().union(*(model.errors for model in models))
        for row in PAPER[paper]:
            rows += _rows(f"{row.model} (paper)", {name: row.errors[name] for name in MOLECULES if name in measured})
        title += f"; arXiv:2403.09549, {_TABLES[paper]}, below"
    return Table(title, _HEADER, rows)


def _last_errors(run: Run, molecule: str) -> tuple[float, float]:
    rows, given = run.rows("val", "forces_mae"), f"'{run.folder}', given for {molecule},"
    if not rows:
        raise ValueError(f"{given} has no validation: make one by `{_HOW}`")
    last: Mapping[str, Any] = rows[-1]
    if WEIGHTS not in last:
        raise ValueError(f"{given} is a training, whose validations are not on the test set: make one by `{_HOW}`")
    _require_test_set(last.get(SOURCE), molecule, given)
    for metric in _METRICS:
        if not math.isfinite(last.get(metric, math.nan)):
            raise ValueError(f"{given} has {metric} {last.get(metric)}: nothing to report")
    return MILLI * last["energy_mae"], MILLI * last["forces_mae"]


def _require_test_set(source: str | None, molecule: str, given: str) -> None:
    """Raise ValueError if the data of a validation are another molecule's, or those of training or validation.

    Both are known of what `dens data molecules` made and is still there; older validations do not say their data.
    """
    origin = origin_of(source)
    if source is None or origin is None:
        return
    if origin.formula != _FORMULAS[molecule]:
        found = origin.formula or "several molecules"
        raise ValueError(f"{given} was validated on '{source}', which is {found} and not {_FORMULAS[molecule]}")
    if Path(source).name != "test":
        raise ValueError(f"{given} was validated on '{source}', which is not the test set: make one by `{_HOW}`")


def _require_different(errors: Iterable[tuple[str, tuple[float, float]]]) -> None:
    """Raise where two rows have the very same errors, as when `dataset.val.src` or the checkpoint was not changed."""
    seen: dict[tuple[float, float], str] = {}
    for name, pair in errors:
        if pair in seen and seen[pair] != name:
            raise ValueError(
                f"molecules {seen[pair]} and {name} have the very same errors: was each validated on its own data "
                "(--dataset.val.src)?"
            )
        if pair in seen:
            raise ValueError(f"two models have the very same errors for {name}: was one validation given twice?")
        seen[pair] = name


def _rows(model: str, errors: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    return [(model, name, f"{energy:.1f}", f"{forces:.1f}") for name, (energy, forces) in errors.items()]
