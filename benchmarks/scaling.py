"""How the cost of a training step and of inference grows with atoms, neighbours, degree, layers and channels.

    python benchmarks/scaling.py                           # a small network; four minutes on two CPU cores
    python benchmarks/scaling.py --axis layers --axis lmax
    python benchmarks/scaling.py --full --device cuda      # about the 83M network on one slab

Around a base point one number changes at a time. At each point fairchem's DeNS and ours take turns on the same slabs
(`timing`), with equal weights, after a check that they predict the same. A ratio is the median over rounds of the ratio
within a round: how many times less ours costs. The exponent of an axis is the slope of a line through the logarithms of
cost and of the axis, over all its points. Attention's channels are in proportion to the others.

A JSON file with every round, a table (Markdown) and a plot (PNG) are written to ``--out``. A point that fails, as for
want of memory, is named there, and the others go on.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from contestants import build_all, require_equal
from machine import describe_machine, hardware
from measures import INFERENCE, INFERENCE_MEMORY, STEP, STEP_MEMORY, medians, ratio_cell, ratios
from memory import Case, in_fresh_process
from modes import pairing
from plots import plot_scaling
from results import dated, table
from sizes import Settings, paper_settings
from structures import corrupted_atoms, draw_slabs
from timing import inference_actions, interleaved, step_actions, warm_up_rounds

NAMES = ("fairchem_dens", "ours")

_MODEL, _PRECISION, _SEED = "equiformer_v2", "fp32", 0


class Point(NamedTuple):
    """A network and the slabs that it sees; ``width`` makes slabs of 4 width^2 + 2 atoms."""

    width: int
    neighbours: int
    lmax: int
    layers: int
    channels: int

    def settings(self) -> Settings:
        """Hyper-parameters of the backbone."""
        channels = self.channels
        return paper_settings(_MODEL, lmax=self.lmax, layers=self.layers) | {
            "max_neighbors": self.neighbours,
            "sphere_channels": channels,
            "edge_channels": channels,
            "ffn_hidden_channels": channels,
            "attn_hidden_channels": channels // 2,
            "attn_alpha_channels": channels // 2,
            "attn_value_channels": channels // 8,
        }


SMALL = Point(width=3, neighbours=12, lmax=3, layers=2, channels=32)
SMALL_AXES = {
    "width": (2, 3, 4, 6),
    "neighbours": (6, 12, 20, 30),
    "lmax": (1, 2, 3, 4, 6),
    "layers": (1, 2, 4, 8),
    "channels": (16, 32, 64, 128),
}
PAPER = Point(width=5, neighbours=20, lmax=6, layers=12, channels=128)
PAPER_AXES = {
    "width": (3, 5, 7, 10, 14),
    "neighbours": (10, 20, 40, 80),
    "lmax": (2, 3, 4, 6, 8),
    "layers": (4, 8, 12, 18),
    "channels": (32, 64, 128, 256),
}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print the table, write everything, and return the path of the JSON file."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    base, axes = (PAPER, PAPER_AXES) if args.full else (SMALL, SMALL_AXES)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in vars(args).items() if key != "out"} | {"base": base._asdict()},
        "hardware": hardware(args.device),
        "rows": [],
        "failures": {},
    }
    known: dict[Point, dict[str, Any]] = {}  # the base point is on every axis
    for axis, point in points(base, {axis: axes[axis] for axis in args.axis or axes}):
        try:
            if point not in known:
                known[point] = measure(point, args)
        except RuntimeError as error:  # torch's out of memory, or networks that differ
            report["failures"][str(point._asdict())] = str(error)
            print(f"{point}: {error}", file=sys.stderr)
        else:
            report["rows"] += _rows(axis, point, known[point])
        path = _write(report, args)  # as the next may end the process
    print(path.with_suffix(".md").read_text())
    return path


def points(base: Point, axes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Point]]:
    """Each axis with its points, which differ from the base in that alone."""
    for axis, values in axes.items():
        for value in values:
            yield axis, base._replace(**{axis: value})


def measure(point: Point, args: argparse.Namespace) -> dict[str, Any]:
    """Costs of both contestants at a point, and the number of atoms."""
    draw = functools.partial(draw_slabs, point.width, count=args.rounds, seed=_SEED, device=args.device)
    samples, pair = draw(), pairing(_PRECISION, args.device)
    torch.manual_seed(_SEED)
    networks = build_all(_MODEL, point.settings(), args.device, pair, names=NAMES)
    require_equal(_MODEL, networks, max(samples, key=corrupted_atoms), pair)
    actions = {
        STEP: step_actions(_MODEL, networks, samples, pair),
        INFERENCE: inference_actions(networks, samples, pair),
    }
    warm_up = warm_up_rounds(args.rounds, args.device)
    costs = {key: interleaved(value, args.rounds, args.device, warm_up) for key, value in actions.items()}
    del networks, actions
    if args.memory:
        case = Case(_MODEL, point.settings(), _PRECISION, args.device, args.threads, draw)
        for key in (STEP_MEMORY, INFERENCE_MEMORY):
            costs[key] = {name: [in_fresh_process(case, key, name)] for name in NAMES}
    return {"atoms": len(samples[0].clean.pos), "costs": costs}


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """P of cost ~ value^p, by least squares in the logarithms; NaN for a single point."""
    if len(values) < 2:
        return float("nan")
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def markdown(report: Mapping[str, Any]) -> str:
    """Conditions, a row a point, and the exponents."""
    base, rows = report["settings"]["base"], report["rows"]
    header = ["axis", "value", "cost", *NAMES, "times less (quartiles)"]
    cells = [
        [row["axis"], str(row["value"]), row["measure"]]
        + [f"{row['median'][name]:.4g}" for name in NAMES]
        + [ratio_cell(row["times_less"]["fairchem_dens"])]
        for row in rows
    ]
    lines = [f"EquiformerV2, fp32, one slab, around {base}, on {describe_machine(report['hardware'])}.", ""]
    lines += [*table(header, cells), "", *_exponents(rows)]
    return "\n".join(lines + [f"\nNot measured: {point}: {why}" for point, why in report["failures"].items()])


def _exponents(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for axis, kind in dict.fromkeys((row["axis"], row["measure"]) for row in rows):
        chosen = [row for row in rows if (row["axis"], row["measure"]) == (axis, kind)]
        values = [row["value"] for row in chosen]
        slopes = [exponent(values, [row["median"][name] for row in chosen]) for name in NAMES]
        cells.append([axis, kind, *(f"{slope:.2f}" for slope in slopes)])
    return table(["axis", "cost", *(f"exponent, {name}" for name in NAMES)], cells)


def _rows(axis: str, point: Point, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    name, value = ("atoms", measured["atoms"]) if axis == "width" else (axis, getattr(point, axis))
    return [
        {"axis": name, "value": value, "measure": key, "costs": costs}
        | {"median": medians(costs), "times_less": ratios(costs)}
        for key, costs in measured["costs"].items()
    ]


def _write(report: Mapping[str, Any], args: argparse.Namespace) -> Path:
    path = dated(Path(args.out), f"scaling_{args.device}", report["date"])
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report) + "\n")
    if report["rows"]:
        plot_scaling(report["rows"], path.with_suffix(".png"), describe_machine(report["hardware"]))
    return path


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", action="append", choices=SMALL_AXES, help="only this one; may be repeated")
    parser.add_argument("--full", action="store_true", help="around the paper's 83M network; for a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="each with its own slab (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory too, a process for each figure")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder for the results")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return args


if __name__ == "__main__":
    written = main()
    print(f"written to {written}, and beside it the table and the plot")
