"""Learning curves, and how runs look in every figure of a report.

Baselines are orange or yellow and dashed, methods with outputs of their own have other colours and are solid (Okabe
and Ito's colours, which colour-blind readers can tell apart); seeds of one configuration share a colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from dens_plugin.figure_style import STYLE
from dens_plugin.report.runs import MILLI, Run, grouped, seeds_of

_BASELINES = ("#D55E00", "#E69F00", "#F0C000")
_METHODS = ("#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#000000", "#7F7F7F")
_METRICS = (("forces_mae", "Validation forces MAE (meV/Å)"), ("energy_mae", "Validation energy MAE (meV)"))


class Line(NamedTuple):
    """How a configuration is drawn.

    Attributes:
        colour: of Matplotlib.
        style: of Matplotlib's lines.
    """

    colour: str
    style: str


def lines_of(runs: Sequence[Run]) -> dict[str, Line]:
    """Group -> colour and line style, the same in every figure."""
    baselines, methods = itertools.cycle(_BASELINES), itertools.cycle(_METHODS)
    return {
        group: Line(next(baselines), "--") if members[0].method.is_baseline else Line(next(methods), "-")
        for group, members in grouped(runs).items()
    }


@matplotlib.rc_context(STYLE)
def learning_curves(runs: Sequence[Run]) -> Figure | None:
    """Validation errors of forces and energy against steps and wall-clock minutes; None before any validation."""
    if not any(run.rows("val", "forces_mae") for run in runs):
        return None
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    lines = lines_of(runs)
    against: tuple[Callable[[Run, Mapping[str, Any]], float], ...] = (
        lambda _, row: row["step"],
        lambda run, row: run.minutes(row["time"]),
    )
    for (metric, label), pair in zip(_METRICS, panels, strict=True):
        for abscissa, panel in zip(against, pair, strict=True):
            _draw_curves(panel, runs, metric, abscissa=abscissa, lines=lines)
        pair[0].set_ylabel(label)
        _scale_errors(pair[0])
    for panel in panels[1]:
        _from_zero(panel)
    panels[1, 0].set_xlabel("Optimiser step")
    panels[1, 1].set_xlabel("Wall-clock time (min)")
    add_legend(figure, panels[0, 0], runs)
    return figure


@matplotlib.rc_context(STYLE)
def training_curves(runs: Sequence[Run]) -> Figure | None:
    """Running medians of the errors on training batches; the noise only where a run denoises."""
    metrics = [
        (metric, label, factor)
        for metric, label, factor in (
            ("forces_mae", "Training forces MAE (meV/Å)", MILLI),
            ("noise_mae", "Training noise MAE (Å)", 1.0),
        )
        if any(len(run.rows("train", metric)) > 1 for run in runs)
    ]
    if not metrics:
        return None
    figure = Figure(figsize=(3.6 * len(metrics), 2.9), layout="constrained")
    lines = lines_of(runs)
    panels = list(figure.subplots(1, len(metrics), squeeze=False)[0])
    for (metric, label, factor), panel in zip(metrics, panels, strict=True):
        for run in runs:
            rows = run.rows("train", metric)
            median = _running_median([factor * row[metric] for row in rows])
            panel.plot([row["step"] for row in rows], median, lw=1.3, **_look(run, lines))
        panel.set(xlabel="Optimiser step", ylabel=label)
        panel.grid(visible=True)
        _from_zero(panel)
        _scale_errors(panel)
    add_legend(figure, panels[0], runs)
    return figure


def _draw_curves(
    panel: Axes,
    runs: Sequence[Run],
    metric: str,
    *,
    abscissa: Callable[[Run, Mapping[str, Any]], float],
    lines: Mapping[str, Line],
) -> None:
    for run in runs:
        rows = run.rows("val", metric)
        values = [MILLI * row[metric] for row in rows]
        panel.plot([abscissa(run, row) for row in rows], values, marker="o", ms=3, lw=1.3, **_look(run, lines))
    panel.grid(visible=True)


def _look(run: Run, lines: Mapping[str, Line]) -> dict[str, Any]:
    line = lines[run.group]
    return {"color": line.colour, "ls": line.style, "label": run.group}


def add_legend(figure: Figure, panel: Axes, runs: Sequence[Run]) -> None:
    """One entry per configuration, with its number of seeds, above the panels."""
    handles, labels = panel.get_legend_handles_labels()
    first = {label: handle for handle, label in reversed(list(zip(handles, labels, strict=True)))}
    names = list(dict.fromkeys(labels))
    groups = grouped(runs)
    texts = [f"{name}{_seeds_in_words(groups.get(name, []))}" for name in names]
    figure.legend([first[name] for name in names], texts, loc="outside upper center", ncols=min(len(names), 3))


def _seeds_in_words(runs: Sequence[Run]) -> str:
    """``(3 seeds)``, ``(5 runs of one seed)``, or nothing for a single run."""
    if len(runs) < 2:
        return ""
    seeds = len(seeds_of(runs))
    if seeds == len(runs):
        return f" ({seeds} seeds)"
    return f" ({len(runs)} runs of {'one seed' if seeds == 1 else f'{seeds} seeds'})"


def _scale_errors(panel: Axes) -> None:
    """A logarithmic axis where the values span more than 0.6 decades, with plain numbers either way."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in panel.get_lines()])
    values = values[np.isfinite(values) & (values > 0)]
    decades = math.log10(values.max() / values.min()) if len(values) else 0.0
    if decades > 0.6:
        panel.set_yscale("log")
        panel.set_ylabel(f"{panel.get_ylabel()}\nlog scale")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades > 1.3 else (1, 1.5, 2, 3, 5, 7)))
        panel.yaxis.set_minor_locator(NullLocator())
    else:
        panel.margins(y=0.08)
        panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _from_zero(panel: Axes) -> None:
    """The abscissa from 0 to a little beyond the last point."""
    last = max((float(line.get_xdata()[-1]) for line in panel.get_lines() if len(line.get_xdata())), default=1.0)
    panel.set_xlim(0, 1.04 * last)
    panel.xaxis.set_major_locator(MaxNLocator(5))


def _running_median(values: Sequence[float]) -> list[float]:
    """Medians over up to a tenth of the values on either side."""
    reach = max(2, len(values) // 20)
    return [float(np.median(values[max(0, at - reach) : at + reach + 1])) for at in range(len(values))]
