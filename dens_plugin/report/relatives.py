"""Tables of the papers on DeNS's relatives, with ours beside them.

A row of ours is one run of `dens validate` for each of the things that a table has columns of: molecules of MD17,
targets of QM9, data sets. Figures of a paper that only exist as pictures are not here.

References:
    NDeM: Tang, Xu, Zhao and Shen, "Coordinate Denoising for Non-Equilibrium Molecular Representation Learning".
    Denoise pre-training: Wang, Xu, Li and Barati Farimani, https://arxiv.org/abs/2303.02216.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ase import units

from dens_plugin.report.runs import Run, only_run
from dens_plugin.report.tables import NONE, Table
from dens_plugin.settings import suggestion
from dens_plugin.training.history import WEIGHTS

_KCAL = units.kcal / units.mol  # eV
_HOW = "dens validate --config-yml C --checkpoint P --dataset.val.src=TEST --identifier MODEL_{column}"


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        key: what a validation is given as.
        title: its head.
        metrics: names in a history, the first that is there.
        convert: from their unit, eV where there is energy, to the paper's.
        digits: after the point, of ours.
    """

    key: str
    title: str
    metrics: tuple[str, ...]
    convert: Callable[[float], float]
    digits: int


class PaperTable(NamedTuple):
    """A table of a paper.

    Attributes:
        title: the paper and the number of its table.
        columns: as the paper has them.
        rows: (model, cells as printed).
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def keys(self) -> list[str]:
        """What validations can be given for, in order."""
        return list(dict.fromkeys(column.key for column in self.columns))


def _forces(key: str) -> Column:
    title = f"{key.replace('_', ' ').capitalize()} forces (kcal/mol/Å)"
    return Column(key, title, ("forces_mae",), lambda value: value / _KCAL, 4)


def _target(key: str, unit: str, digits: int, factor: float = 1.0) -> Column:
    names = (f"{key}_mae", "energy_mae") if key == "U0" else (f"{key}_mae",)
    return Column(key, f"{key} ({unit})", names, lambda value: factor * value, digits)


def _of_set(key: str, name: str) -> tuple[Column, Column]:
    return (
        Column(key, f"{name} RMSE (kcal/mol)", ("energy_mse",), lambda value: math.sqrt(value) / _KCAL, 2),
        Column(key, f"{name} MAE (kcal/mol)", ("energy_mae",), lambda value: value / _KCAL, 2),
    )


def _oc20(key: str, name: str) -> tuple[Column, Column]:
    return (
        Column(key, f"{name} energy (meV)", ("energy_mae",), lambda value: 1000 * value, 0),
        Column(key, f"{name} forces (meV/Å)", ("forces_mae",), lambda value: 1000 * value, 1),
    )


def _named(rows: Mapping[str, str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Rows of models' cells, which blanks divide."""
    return tuple((model, tuple(text.split())) for model, text in rows.items())


_MD17 = ("aspirin", "benzene", "ethanol", "malonaldehyde", "naphthalene", "salicylic_acid", "toluene", "uracil")
_QM9 = (
    _target("mu", "D", 4),
    _target("alpha", "a0³", 4),
    _target("homo", "meV", 1, 1000),
    _target("lumo", "meV", 1, 1000),
    _target("gap", "meV", 1, 1000),
    _target("r2", "a0²", 4),
    _target("zpve", "meV", 3, 1000),
    _target("U0", "meV", 2, 1000),
    _target("U", "meV", 2, 1000),
    _target("H", "meV", 2, 1000),
    _target("G", "meV", 2, 1000),
    _target("Cv", "cal/mol/K", 3),
)
PAPER = {
    "ndem-table1": PaperTable(
        "NDeM, Table 1, MD17",
        tuple(map(_forces, _MD17)),
        _named(
            {
                "SchNet": "1.35 0.31 0.39 0.66 0.58 0.85 0.57 0.56",
                "DimeNet": "0.499 0.187 0.230 0.383 0.215 0.374 0.216 0.301",
                "PaiNN": "0.338 – 0.224 0.319 0.077 0.195 0.094 0.139",
                "TorchMD-NET": "0.2450 0.2187 0.1067 0.1667 0.0593 0.1284 0.0644 0.0887",
                "SE(3)-DDM": "0.453 – 0.166 0.288 0.129 0.226 0.122 0.183",
                "Frad": "0.2087 0.1994 0.0910 0.1415 0.0530 0.1081 0.0540 0.0760",
                "SliDe": "0.1740 0.1691 0.0882 0.1538 0.0483 0.1006 0.0540 0.0825",
                "NDeM": "0.1654 0.1802 0.0868 0.1439 0.0480 0.1004 0.0536 0.0806",
            }
        ),
    ),
    "ndem-table2": PaperTable(
        "NDeM, Table 2, QM9",
        _QM9,
        _named(
            {
                "SchNet": "0.033 0.235 41.0 34.0 63.0 0.07 1.70 14.00 19.00 14.00 14.00 0.033",
                "DimeNet++": "0.030 0.044 24.6 19.5 32.6 0.33 1.21 6.32 6.28 6.53 7.56 0.023",
                "PaiNN": "0.012 0.045 27.6 20.4 45.7 0.07 1.28 5.85 5.83 5.98 7.35 0.024",
                "SphereNet": "0.025 0.045 22.8 18.9 31.1 0.27 1.120 6.26 6.36 6.33 7.78 0.022",
                "TorchMD-NET": "0.011 0.059 20.3 17.5 36.1 0.033 1.840 6.15 6.38 6.16 7.62 0.026",
                "Transformer-M": "0.037 0.041 17.5 16.2 27.4 0.075 1.18 9.37 9.41 9.39 9.63 0.022",
                "SE(3)-DDM": "0.015 0.046 23.5 19.5 40.2 1.22 1.31 6.92 6.99 7.09 7.65 0.024",
                "3D-EMGP": "0.020 0.057 21.3 18.2 37.1 0.092 1.38 8.60 8.60 8.70 9.30 0.026",
                "Frad": "0.010 0.0374 15.3 13.7 27.8 0.3419 1.418 5.33 5.62 5.55 6.19 0.020",
                "SliDe": "0.0087 0.0366 13.6 12.3 26.2 0.3405 1.521 4.28 4.29 4.26 5.37 0.019",
                "NDeM": "0.0082 0.0356 13.6 12.3 26.0 0.3127 1.210 5.31 5.34 4.89 5.51 0.019",
            }
        ),
    ),
    "ndem-table3": PaperTable(
        "NDeM, Table 3, OC20",
        (*_oc20("val", "Validation"), *_oc20("test", "Test")),
        _named(
            {
                "GemNet-OC-L-E": "239 22.1 230 21.0",
                "GemNet-OC-L-F": "252 20.0 241 19.0",
                "SCN L=6 K=16 (4-tap 2-band)": "– – 228 17.8",
                "SCN L=8 K=20": "– – 237 17.2",
                "eSCN L=6 K=20": "243 17.1 236 16.2",
                "EquiformerV2 (λ_E 4, 31M)": "232 16.3 228 15.5",
                "EquiformerV2 (λ_E 2, 153M)": "230 14.6 227 13.8",
                "EquiformerV2 (λ_E 4, 153M)": "227 15.0 219 14.2",
                "EquiformerV2 + DeNS (λ_E 4, 160M)": "221 14.2 216 13.4",
                "EquiformerV2 + NDeM (λ_E 2, 157M)": "229 13.8 227 12.9",
                "EquiformerV2 + NDeM (λ_E 4, 157M)": "219 14.7 218 13.8",
            }
        ),
    ),
    "ndem-table4": PaperTable(
        "NDeM, Table 4, coefficient",
        (_forces("aspirin"),),
        _named({"λ 0": "0.2087", "λ 0.1": "0.1688", "λ 1": "0.1654", "λ 10": "0.1671", "λ 100": "0.1722"}),
    ),
    "ndem-table5": PaperTable(
        "NDeM, Table 5, largest σ",
        (_forces("aspirin"),),
        _named({"σ 0.005": "0.1666", "σ 0.05": "0.1654", "σ 0.1": "0.1657", "σ 0.5": "0.1887"}),
    ),
    "ndem-table6": PaperTable(
        "NDeM, Table 6, from pre-trained weights",
        (_forces("aspirin"),),
        _named(
            {
                "Frad": "0.2088",
                "Frad + NDeM": "0.1774",
                "SliDe": "0.1698",
                "SliDe + NDeM": "0.1648",
                "NDeM from scratch": "0.1654",
            }
        ),
    ),
    "pretrain-table2": PaperTable(
        "Denoise pre-training, Table 2",
        (*_of_set("ani1", "ANI-1"), *_of_set("ani1x", "ANI-1x")),
        _named(
            {
                "SchNet": "2.03 1.33 9.29 5.95",
                "SchNet, pre-trained": "1.50 1.00 5.53 3.80",
                "SE(3)-Transformer": "5.82 4.14 17.67 11.89",
                "SE(3)-Transformer, pre-trained": "5.12 3.64 13.76 9.50",
                "EGNN": "2.35 1.63 7.35 5.30",
                "EGNN, pre-trained": "1.66 1.14 4.94 3.49",
                "TorchMD-Net": "0.60 0.39 2.27 1.50",
                "TorchMD-Net, pre-trained": "0.49 0.32 1.54 1.01",
            }
        ),
    ),
    "pretrain-figure4": PaperTable(
        "Denoise pre-training, Figure 4(a) as its text has it, 5% of ANI-1x",
        (_of_set("ani1x", "ANI-1x")[1],),
        _named({"EGNN": "39.37", "EGNN, pre-trained": "10.04"}),
    ),
}


def relatives_table(models: Sequence[Mapping[str, str | Path]], paper: str) -> Table:
    """A row per model of ours, and the paper's rows below.

    Args:
        models: for each, key of a column -> checkpoint folder of a `dens validate` run.
        paper: a key of :data:`PAPER`.

    Raises:
        FileNotFoundError: for a folder that does not exist or holds no history.
        ValueError: for an unknown column, a folder of several runs or without a validation, or one that is of training.
    """
    table = PAPER[paper]
    rows = [_our_row(table, folders) for folders in models]
    rows += [(f"{model} (paper)", *cells) for model, cells in table.rows]
    return Table(table.title, ("Model", *(column.title for column in table.columns)), rows)


def _our_row(table: PaperTable, folders: Mapping[str, str | Path]) -> tuple[str, ...]:
    for key in folders:
        if key not in table.keys:
            raise ValueError(f"unknown column '{key}' in --columns; {suggestion(key, table.keys)}")
    runs = {key: only_run(folder, f"--columns {key}") for key, folder in folders.items()}
    return _name(runs), *_cells(table, runs)


def _cells(table: PaperTable, runs: Mapping[str, Run]) -> Iterator[str]:
    for column in table.columns:
        if column.key in runs:
            yield f"{column.convert(_last_value(runs[column.key], column)):.{column.digits}f}"
        else:
            yield NONE


def _name(runs: Mapping[str, Run]) -> str:
    """What the labels of a model's runs have in common, its column left out."""
    key, run = next(iter(runs.items()))
    return run.label.removesuffix(key).rstrip("-_ ") or run.label


def _last_value(run: Run, column: Column) -> float:
    given = f"'{run.folder}', given for {column.key},"
    for metric in column.metrics:
        rows = run.rows("val", metric)
        if not rows:
            continue
        if WEIGHTS not in rows[-1]:
            how = _HOW.format(column=column.key)
            raise ValueError(f"{given} is a training, whose validations are not on the test set: make one by `{how}`")
        value = float(rows[-1][metric])
        if not math.isfinite(value):
            raise ValueError(f"{given} has {metric} {value}: nothing to report")
        return value
    kind = column.metrics[0].rpartition("_")[2]
    raise ValueError(
        f"{given} has no validation with {' or '.join(column.metrics)}: name {kind} under evaluation_metrics.metrics "
        f"and make one by `{_HOW.format(column=column.key)}`"
    )
