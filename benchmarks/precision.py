"""What a precision costs in accuracy: errors against float64, and the curves of a short training run.

    python benchmarks/precision.py                              # errors at 2 layers of the 83M network
    python benchmarks/precision.py --layers 12 --device cuda
    python benchmarks/precision.py --train 300                  # and EquiformerV2 (mini) on OC20-mini, 300 steps each

**Errors.** Energy, forces, noise and the gradient of the training loss of a corrupted batch, beside fairchem's layers
in float64 (``fast: false``) with the same weights, neighbour graph and edge frames, and without dropout. An error is
||x - x64|| / ||x64||, over all rows that count and over all parameters; the worst parameter's is given too.
``ours_host`` is ``fast: false``, which stands for fairchem.

**Curves.** ``dens train`` with equal seeds, so that structures, corruptions and dropout agree. Two float32 runs with
different seeds show what a difference between runs means.

TF32 and fairchem's AMP exist on CUDA alone; a CPU has neither. A JSON file, tables and a plot are written to ``--out``.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from curves import train_all
from errors import reference, relative_errors
from machine import describe_machine, hardware
from modes import ON_CPU, PRECISIONS, pairing
from plots import plot_curves
from results import dated, table
from sizes import SIZES, paper_settings
from structures import SYNTHETIC, corrupted_atoms, draw_samples


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print the tables, write everything, and return the path of the JSON file."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    names = PRECISIONS if args.device == "cuda" else ON_CPU
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "hardware": hardware(args.device),
        "unavailable": [name for name in PRECISIONS if name not in names],
        "errors": errors(args, names),
        "curves": {},
    }
    path = dated(Path(args.out), f"precision_{args.device}", report["date"])
    if args.train:
        report["curves"] = train_all(path.with_suffix(""), names, steps=args.train, device=args.device)
        plot_curves(report["curves"], path.with_suffix(".png"), describe_machine(report["hardware"]))
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report) + "\n")
    print(path.with_suffix(".md").read_text())
    return path


def errors(args: argparse.Namespace, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Who and how -> quantity -> relative error."""
    settings = paper_settings(
        "equiformer_v2", size=args.size, lmax=args.lmax, layers=args.layers, channels=args.channels
    )
    samples = draw_samples(args.data, count=args.batch, size=1, seed=0, device=args.device)
    exact = reference(settings, max(samples, key=corrupted_atoms), args.device)
    return {
        f"{who}, {mode.label}": relative_errors(exact, who, mode)
        for name in names
        for who, mode in _entries(name, args.device)
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Conditions, errors, and the last figures of the curves."""
    found = report["errors"]
    quantities = list(next(iter(found.values())))
    rows = [[who, *(f"{values[name]:.1e}" for name in quantities)] for who, values in found.items()]
    settings = report["settings"]
    lines = [
        f"Errors relative to float64, EquiformerV2 {settings['size']} with {settings['layers']} layers, on "
        f"{describe_machine(report['hardware'])}.",
        *([f"Not on a CPU: {', '.join(report['unavailable'])}."] if report["unavailable"] else []),
        "",
        *table(["", *quantities], rows),
    ]
    if report["curves"]:
        metrics = list(next(iter(report["curves"].values())))
        ends = [[run, *(f"{curve[name][-1][1]:.4g}" for name in metrics)] for run, curve in report["curves"].items()]
        lines += ["", f"After {settings['train']} steps on OC20-mini:", "", *table(["run", *metrics], ends)]
    return "\n".join(lines)


def _entries(precision: str, device: str) -> list[tuple[str, Any]]:
    pair = pairing(precision, device)
    theirs = [] if precision == "bf16" else [("ours_host", pair.fairchem)]  # compared with what `amp` has measured
    return [*theirs, ("ours", pair.ours)]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="83m")
    parser.add_argument("--layers", type=int, default=2, help="default: 2")
    parser.add_argument("--lmax", type=int, help="another degree than the size's 6")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="also train for so many steps each")
    parser.add_argument("--batch", type=int, default=4, help="structures among which the most corrupted is taken")
    parser.add_argument("--data", help=f"folder of LMDBs, or '{SYNTHETIC}' (default: data/oc20_mini/train if there)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder for the results")
    parser.add_argument("--channels", type=int, default=128, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return args


if __name__ == "__main__":
    written = main()
    print(f"written to {written}, and beside it the tables and the plot")
