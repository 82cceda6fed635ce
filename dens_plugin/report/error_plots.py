"""What a checkpoint gets wrong: parity plots of energies and forces, and errors of the forces by element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dens_plugin.figure_style import STYLE
from dens_plugin.report.plots import Line, add_legend, lines_of
from dens_plugin.report.predictions import Predictions
from dens_plugin.report.runs import MILLI, Run

_PANELS_PER_ROW = 4
_BARS_PER_ROW = 60
_SCATTER_UP_TO = 600  # points; more are counted in hexagons
_SHOWN = 99.8  # % of the force components inside a parity plot's limits


@matplotlib.rc_context(STYLE)
def parity(runs: Sequence[Run], predictions: Mapping[str, Predictions], quantity: str) -> Figure | None:
    """Predictions against labels, a panel per run with its MAE and RMSE; None without predictions.

    Args:
        runs: in the order of the panels; those without predictions are left out.
        predictions: by label.
        quantity: ``energy`` or ``forces``.
    """
    shown = [run for run in runs if run.label in predictions]
    if not shown:
        return None
    rows = math.ceil(len(shown) / _PANELS_PER_ROW)
    columns = math.ceil(len(shown) / rows)
    figure = Figure(figsize=(2.6 * columns + 0.6, 2.75 * rows + 0.3), layout="compressed")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lines, draw = lines_of(runs), {"energy": _energy_panel, "forces": _forces_panel}[quantity]
    limits = _shared_limits([predictions[run.label] for run in shown], quantity)
    for run, panel in zip(shown, panels.flat, strict=False):
        draw(panel, predictions[run.label], limits=limits, colour=lines[run.group].colour)
        panel.set_title(f"{_wrapped(run.label)}\n{panel.get_title()}")
    name, unit = {"energy": ("energy", "eV"), "forces": ("force component", "eV/Å")}[quantity]
    _add_colour_bar(figure, panels, f"{name}s in a hexagon" if quantity == "forces" else "structures in a hexagon")
    for panel in panels[:, 0]:
        panel.set_ylabel(f"Predicted {name} ({unit})")
    for at, panel in enumerate(panels.flat):
        panel.set_visible(at < len(shown))
        if at + columns >= len(shown):  # the lowest of its column
            panel.set_xlabel(f"Label: {name} ({unit})")
            panel.tick_params(labelbottom=True)
    return figure


@matplotlib.rc_context(STYLE)
def element_errors(runs: Sequence[Run], predictions: Mapping[str, Predictions]) -> Figure | None:
    """Error of the forces for each element, a bar per run; None without predictions."""
    shown = [run for run in runs if run.label in predictions]
    if not shown:
        return None
    counts = _free_atoms([predictions[run.label] for run in shown])
    rows = math.ceil(len(counts) * len(shown) / _BARS_PER_ROW)
    columns = math.ceil(len(counts) / rows)
    figure = Figure(figsize=(min(max(5.5, 0.6 + 0.42 * columns), 9.0), 0.6 + 1.9 * rows), layout="constrained")
    panels, lines = list(figure.subplots(rows, 1, sharey=True, squeeze=False)[:, 0]), lines_of(runs)
    for at, panel in enumerate(panels):
        part = dict(list(counts.items())[at * columns : (at + 1) * columns])
        _draw_bars(panel, shown, predictions, counts=part, lines=lines)
        panel.set(xlim=(-0.6, columns - 0.4))
    panels[-1].set_xlabel("Element, with its number of free atoms")
    figure.supylabel("Forces MAE (meV/Å)", fontsize=9)
    add_legend(figure, panels[0], shown)
    return figure


def _draw_bars(
    panel: Axes,
    runs: Sequence[Run],
    predictions: Mapping[str, Predictions],
    *,
    counts: Mapping[int, int],
    lines: Mapping[str, Line],
) -> None:
    """A bar per element and run."""
    width = 0.8 / len(runs)
    for at, run in enumerate(runs):
        errors = predictions[run.label].element_errors()
        heights = [MILLI * errors.get(number, math.nan) for number in counts]
        places = np.arange(len(counts)) + width * (at - (len(runs) - 1) / 2)
        panel.bar(places, heights, 0.92 * width, color=lines[run.group].colour, label=run.group)
    names = [f"{chemical_symbols[number]}\n{_short(count)}" for number, count in counts.items()]
    panel.set_xticks(range(len(counts)), names)
    panel.tick_params(axis="x", length=0)
    panel.grid(visible=True, axis="y")
    panel.set_axisbelow(True)


def _shared_limits(predictions: Sequence[Predictions], quantity: str) -> tuple[float, float]:
    """Limits for all panels of a quantity: everything for energies, nearly everything, symmetric, for forces."""
    if quantity == "energy":
        values = np.concatenate([np.concatenate([each.energy, each.energy_label]) for each in predictions])
        margin = 0.05 * max(float(np.ptp(values)), 1e-3)
        return float(values.min()) - margin, float(values.max()) + margin
    values = np.concatenate([np.concatenate([each.forces.ravel(), each.forces_label.ravel()]) for each in predictions])
    limit = max(1.05 * float(np.percentile(np.abs(values), _SHOWN)), 1e-3)
    return -limit, limit


def _energy_panel(panel: Axes, data: Predictions, *, limits: tuple[float, float], colour: str) -> None:
    panel.set_title(_title(data.energy_mae, _rmse(data.energy, data.energy_label), "meV", digits=0))
    _parity_panel(panel, data.energy_label, data.energy, limits=limits, colour=colour)


def _forces_panel(panel: Axes, data: Predictions, *, limits: tuple[float, float], colour: str) -> None:
    panel.set_title(_title(data.forces_mae, _rmse(data.forces, data.forces_label), "meV/Å", digits=1))
    _parity_panel(panel, data.forces_label.ravel(), data.forces.ravel(), limits=limits, colour=colour)


def _title(mae: float, rmse: float, unit: str, *, digits: int) -> str:
    return f"MAE {MILLI * mae:,.{digits}f}, RMSE {MILLI * rmse:,.{digits}f} {unit}"


def _rmse(predicted: np.ndarray, label: np.ndarray) -> float:
    return float(np.sqrt(np.square(predicted - label).mean()))


def _add_colour_bar(figure: Figure, panels: np.ndarray, label: str) -> None:
    """One scale of colours for all panels whose points are counted, and a bar that says what it means."""
    counted = [one for panel in panels.flat for one in panel.collections if isinstance(one, PolyCollection)]
    if not counted:
        return
    most = max(float(np.max(one.get_array())) for one in counted)
    for one in counted:
        one.set_norm(LogNorm(1, max(most, 2)))
    figure.colorbar(counted[0], ax=panels, label=label, shrink=0.8, pad=0.02)


def _parity_panel(
    panel: Axes, label: np.ndarray, predicted: np.ndarray, *, limits: tuple[float, float], colour: str
) -> None:
    panel.plot(limits, limits, color="0.5", lw=0.8, zorder=3)
    if len(label) <= _SCATTER_UP_TO:
        panel.scatter(label, predicted, s=8, color=colour, alpha=0.5, lw=0, rasterized=True)
    else:
        panel.hexbin(
            label, predicted, gridsize=60, extent=(*limits, *limits), bins="log", mincnt=1, cmap="viridis", lw=0
        )
    panel.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _wrapped(label: str) -> str:
    """A long label on two lines."""
    if len(label) <= 26:
        return label
    middle = min(
        (at for at, letter in enumerate(label) if letter in "-_ "), key=lambda at: abs(at - len(label) / 2), default=26
    )
    return f"{label[: middle + 1]}\n{label[middle + 1 :]}"


def _free_atoms(predictions: Sequence[Predictions]) -> dict[int, int]:
    """Atomic number -> free atoms of the first run that has the element, by atomic number."""
    counts: dict[int, int] = {}
    for each in predictions:
        found = zip(*(array.tolist() for array in np.unique(each.numbers, return_counts=True)), strict=True)
        counts = dict(found) | counts
    return dict(sorted(counts.items()))


def _short(count: int) -> str:
    return f"{count / 1000:.1f}k" if count >= 1000 else str(count)
