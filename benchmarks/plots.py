"""Plots of the benchmarks.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

LABELS = {
    "plain": "fairchem, no DeNS",
    "fairchem_dens": "fairchem's DeNS",
    "ours_host": "ours, fast: false",
    "ours": "ours",
    "fairchem": "fairchem's DeNS, float32",
    "fairchem_amp": "fairchem's DeNS, AMP",
    "ordinary": "ours without graphs",
}
COLOURS = {"plain": "#E69F00", "fairchem_dens": "#D55E00", "ours_host": "#56B4E9", "ours": "#0072B2"}
COLOURS |= {"fairchem": "#D55E00", "fairchem_amp": "#E69F00", "ordinary": "#56B4E9"}
CURVES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "legend.frameon": False,
}
_BAR = 0.26
_BESIDE = {"textcoords": "offset points", "va": "center", "fontsize": 8}
_BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
_PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:g}")


@matplotlib.rc_context(STYLE)
def plot_ratios(rows: Sequence[Mapping[str, Any]], path: Path, caption: str) -> None:
    """Bars with quartiles of how many times less ours costs, times on the left and memory on the right."""
    panels = [
        (title, chosen)
        for title, unit in (("Time", ", s"), ("Peak memory", ", MiB"))
        if (chosen := [row for row in rows if row["measure"].endswith(unit)])
    ]
    height = 1.7 + 0.95 * max(len(chosen) for _, chosen in panels)
    figure = Figure(figsize=(2 + 4.6 * len(panels), height), layout="constrained")
    for axes, (title, chosen) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _draw_ratios(axes, chosen)
        axes.set(title=f"{title}: how many times less `ours` costs", xlabel="times less than the one of the colour")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3 * len(panels), fontsize=8)
    figure.supxlabel(textwrap.fill(caption, 95 * len(panels)), fontsize=7, color="0.35")
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_scaling(rows: Sequence[Mapping[str, Any]], path: Path, caption: str) -> None:
    """Cost against each axis, logarithmic on both, a row of panels a measure."""
    measures, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("measure", "axis"))
    figure = Figure(figsize=(2.6 * len(names), 0.6 + 2.3 * len(measures)), layout="constrained")
    panels = figure.subplots(len(measures), len(names), squeeze=False, sharey="row")
    for line, measure in zip(panels, measures, strict=True):
        for axes, name in zip(line, names, strict=True):
            _draw_costs(axes, [row for row in rows if row["measure"] == measure and row["axis"] == name])
            axes.set_xlabel(name)
        line[0].set_ylabel(measure)
    panels[0][0].legend(fontsize=8)
    figure.supxlabel(textwrap.fill(caption, 35 * len(names)), fontsize=7, color="0.35")
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_curves(runs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path, caption: str) -> None:
    """Curves over steps, one panel a metric, one line a run."""
    metrics = list(dict.fromkeys(metric for run in runs.values() for metric in run))
    figure = Figure(figsize=(3.6 * len(metrics), 3.2), layout="constrained")
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
        for (label, run), colour in zip(runs.items(), CURVES * len(runs), strict=False):
            axes.plot(*zip(*run[metric], strict=True), color=colour, label=label, linewidth=1.2)
        axes.set(xlabel="step", ylabel=metric, yscale="log")
        axes.yaxis.set_major_formatter(_PLAIN_NUMBERS)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=20))
        axes.minorticks_off()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid()
    axes.legend(fontsize=8)
    figure.supxlabel(textwrap.fill(caption, 50 * len(metrics)), fontsize=7, color="0.35")
    _save(figure, path)


@matplotlib.rc_context(STYLE)
def plot_gains(rows: Sequence[Mapping[str, Any]], path: Path, part: str) -> None:
    """Gains over training without denoising, forces on the left and energies on the right.

    A group of bars is a molecule with its setting, a colour (some hatched) a method; pale is not ready to be judged.
    """
    known = [row for row in rows if row["method"] != "s2ef" and row["forces_gain"] is not None]
    if not known:
        return
    known.sort(key=lambda row: (row["molecule"], row["frames"], row["network"], row["steps"]))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in known:
        groups.setdefault(_setting(row), []).append(row)
    methods = list(dict.fromkeys(row["method"] for row in known))
    looks = {
        name: {"facecolor": CURVES[at % len(CURVES)], "hatch": "///" * (at // len(CURVES)), "edgecolor": "white"}
        for at, name in enumerate(methods)
    }
    height = 1.6 + 0.22 * len(known) + 0.28 * len(groups) + 0.2 * (len(methods) // 5)
    figure = Figure(figsize=(9, height), layout="constrained")
    for axes, error in zip(figure.subplots(1, 2, sharey=True), ("forces", "energy"), strict=True):
        _draw_gains(axes, groups, looks, error)
        axes.set(title=f"{error.replace('energy', 'energies')} ({part})", xlabel="less error than without denoising, %")
    names = [Patch(label=name, **look) for name, look in looks.items()]
    figure.legend(handles=names, loc="outside upper center", ncols=min(5, len(names)))
    figure.supxlabel("± standard error over seeds; pale: not ready to be judged", fontsize=7, color="0.35")
    _save(figure, path)


def _setting(row: Mapping[str, Any]) -> str:
    return f"{row['molecule']}, {row['frames']} frames\n{row['network']}, {row['steps']:,} steps"


def _draw_gains(
    axes: Axes, groups: Mapping[str, Sequence[Mapping[str, Any]]], looks: Mapping[str, dict[str, Any]], error: str
) -> None:
    place, ticks = 0.0, []
    for rows in groups.values():
        ticks.append(place + (len(rows) - 1) / 2)
        for row in rows:
            gain, spread = row[f"{error}_gain"], row[f"{error}_gain_error"]
            pale = {"alpha": 0.35} if row["not_ready"] else {}
            axes.barh(place, gain, 0.8, linewidth=0, **looks[row["method"]], **pale)
            if spread is not None:
                axes.errorbar(gain, place, xerr=spread, color="0.25", elinewidth=1, capsize=2)
            text = f"{gain:+.1f}" + ("" if spread is None else f" ± {spread:.1f}")
            end = gain + (spread or 0) * (1 if gain >= 0 else -1)
            beside = _BESIDE | {"ha": "left" if gain >= 0 else "right"}
            axes.annotate(text, (end, place), (4 if gain >= 0 else -4, 0), **beside)
            place += 1
        place += 0.8
    axes.axvline(0, color="0.25", linewidth=0.8)
    axes.set_yticks(ticks, list(groups))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 1.2, -0.8)
    axes.margins(x=0.45)  # for the numbers beside the bars
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _draw_ratios(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    others = list(rows[0]["times_less"])
    places = np.arange(len(rows))
    for number, other in enumerate(others):
        values = [row["times_less"][other] for row in rows]
        middle = np.array([value["median"] for value in values])
        low = middle - [value["lower_quartile"] for value in values]
        high = np.array([value["upper_quartile"] for value in values]) - middle
        shifted = places + (number - (len(others) - 1) / 2) * _BAR
        error = {"ecolor": "0.25", "elinewidth": 1, "capsize": 2}
        look = {"color": COLOURS[other], "label": LABELS[other], "error_kw": error}
        axes.barh(shifted, middle, _BAR * 0.9, xerr=(low, high), **look)
        for place, value, end in zip(shifted, middle, middle + high, strict=True):
            axes.annotate(f"{value:.2f}", (end, place), (3, 0), bbox=_BEHIND_TEXT, **_BESIDE)
    _draw_goals(axes, rows)
    axes.axvline(1, color="0.25", linewidth=0.8)
    axes.set_yticks(places, [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _draw_goals(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for key, style, label in (("required", "-", "required against fairchem's DeNS"), ("aim", ":", "aim")):
        goals = [(place, row["goal"][key]) for place, row in enumerate(rows) if row["goal"]]
        for number, (place, value) in enumerate(goals):
            name = label if number == 0 else None
            axes.plot([value, value], [place - 0.45, place + 0.45], style, color="black", linewidth=1.4, label=name)


def _draw_costs(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    x = [row["value"] for row in rows]
    for name in rows[0]["median"]:
        y = [row["median"][name] for row in rows]
        axes.plot(x, y, "o-", color=COLOURS[name], label=LABELS[name], markersize=3.5, linewidth=1.2)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_PLAIN_NUMBERS)
    axes.grid()


def _label(row: Mapping[str, Any]) -> str:
    layers = f"{row['layers']} layers{' (extrapolated)' if row['is_extrapolated'] else ''}"
    return f"{row['measure'].split(',')[0]}, {row['size']}\nL {row['lmax']}, {layers}\n{row['compared']}"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
