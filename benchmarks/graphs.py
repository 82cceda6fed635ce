"""What CUDA graphs gain: ordinary and recorded steps of ours beside fairchem's DeNS, in float32 and under AMP.

    python benchmarks/graphs.py                        # needs a GPU; some six minutes
    python benchmarks/graphs.py --batch 4 --precision bf16 --only 83m

The 83M network at batches of four, the paper's on a GPU, and of eight: training and inference, with our networks in
float32, TF32 and bf16. Contestants take turns on the same batches; a ratio is the median over rounds of those within
one. Our batches have their neighbours from the loader, as the trainer's have, wait in pinned memory and are copied to
the GPU in each step; fairchem's are on the GPU already. Recorded batches are padded to a loader's few sizes.

And Equiformer (L 2) on eight ethanol molecules, forces as gradients of the energy: ordinary and recorded.

Before anything is timed a replay must give the loss and the norm of the gradient of an ordinary step. Every size of
batches is recorded before the first round that counts. A JSON file with every round, a table (Markdown) and a plot
(PNG) are written to ``--out`` after each case, so that one that runs out of memory or time leaves those before it.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from contestants import CONTESTANTS, build_all
from machine import describe_machine, hardware
from measures import INFERENCE, STEP, Costs, Goal, medians, ratio_cell, ratios
from modes import Mode, pairing
from molecule_step import build as build_molecules
from molecule_step import draw_sample as draw_molecules
from plots import plot_ratios
from recorded import Trained, inferences, largest_difference, loaded, ordinary_step, padded, recorded_step
from results import dated, table
from sizes import paper_settings
from structures import SYNTHETIC, Sample, describe, draw_samples
from timing import Actions, Stepper, inference_actions, interleaved

from dens_plugin.compat import prepare_host
from dens_plugin.graphs.capture import Recorder, recorder_for

_FAIRCHEM = {"fairchem": Mode("fp32"), "fairchem_amp": Mode("AMP (fp16)", amp=True)}
_TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 3e-2}  # of sums whose order a GPU does not keep
_GOALS = {  # precision, measure, structures -> what ours recorded is to gain, and over which
    ("fp32", STEP, 8): ("fairchem", Goal(2.3, 3)),
    ("tf32", STEP, 8): ("fairchem", Goal(4.2, 6)),
    ("bf16", STEP, 8): ("fairchem_amp", Goal(3.5, 8)),
    ("bf16", STEP, 4): ("fairchem_amp", Goal(5, 10)),
    ("bf16", INFERENCE, 8): ("fairchem_amp", Goal(5, 8)),
}
_OF_MOLECULES = ("ordinary", Goal(5, 20))
_REPEATS = 4  # of each batch before the rounds that count: three ordinary calls, a recording

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print the table, write everything, and return the path of the JSON file."""
    args = _arguments(argv)
    prepare_host()
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in vars(args).items() if key != "out"} | {"data": {}},
        "hardware": hardware(args.device),
        "table": [],
        "failures": {},
    }
    cases: dict[str, Callable[[], list[Row]]] = {}
    for size in args.batch if args.only != "molecules" else []:
        samples = draw_samples(args.data, count=args.steps, size=size, seed=0, device="cpu")
        report["settings"]["data"][size] = describe(samples, args.data)
        for precision in args.precision:
            cases[f"83M, batch {size}, {precision}"] = functools.partial(_of_83m, args, samples, size, precision)
    if args.only != "83m":
        cases["Equiformer, 8 ethanol"] = functools.partial(_of_molecules, args)
    for name, rows in cases.items():
        try:
            report["table"] += rows()
        except (RuntimeError, ValueError) as error:  # torch's out of memory, or steps that differ
            report["failures"][name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
        path = _write(report, Path(args.out), f"graphs_{args.device}")
        gc.collect()  # the memory of recordings is theirs until they are gone
        if args.device == "cuda":
            torch.cuda.empty_cache()
    print(path.with_suffix(".md").read_text())
    return path


def _of_83m(args: argparse.Namespace, samples: list[Sample], size: int, precision: str) -> list[Row]:
    """Training and inference at one size of batches and one precision of ours."""
    settings = paper_settings("equiformer_v2", lmax=args.lmax, layers=args.layers, channels=args.channels)
    pair = pairing(precision, args.device)
    torch.manual_seed(0)
    networks = build_all("equiformer_v2", settings, args.device, pair, names=["fairchem_dens", "ours"])
    theirs, trained = networks["fairchem_dens"], Trained(networks["ours"], pair.ours)
    contestant, on_device = CONTESTANTS["equiformer_v2"]["fairchem_dens"], [_moved(one, args.device) for one in samples]
    recorder = _recorder(args.device)
    corrupted, clean = (
        loaded(trained.model, [getattr(sample, name) for sample in samples]) for name in ("corrupted", "clean")
    )
    batches = padded(corrupted)
    difference = _require_same(trained, batches[0], recorder, _TOLERANCES[precision])
    modes = _FAIRCHEM if args.device == "cuda" else {"fairchem": _FAIRCHEM["fairchem"]}
    steps: Actions = {
        **{name: Stepper(contestant, theirs, on_device, mode) for name, mode in modes.items()},
        "ordinary": ordinary_step(trained, corrupted),
        "ours": recorded_step(trained, batches, recorder),
    }
    found: Actions = {
        **{name: inference_actions({name: theirs}, on_device, _one_mode(mode))[name] for name, mode in modes.items()},
        "ordinary": inferences(trained, clean, None),
        "ours": inferences(trained, padded(clean), recorder),
    }
    rows = []
    for measure, actions in ((STEP, steps), (INFERENCE, found)):
        _repeat(actions["ours"], args.steps)
        costs = interleaved(actions, args.steps, args.device, warm_up=args.steps)
        row = _row(measure, costs, difference, _GOALS.get((precision, measure, size)))
        shape = {"lmax": settings["lmax_list"][0], "layers": settings["num_layers"]}
        rows.append(row | {"size": f"83M, batch {size}", "compared": f"ours {pair.ours.label}", **shape})
    return rows


def _of_molecules(args: argparse.Namespace) -> list[Row]:
    """Training of Equiformer, in float32."""
    trained = Trained(build_molecules(args.molecules)["dens"].to(args.device), Mode("fp32"))
    recorder, batches = _recorder(args.device), loaded(trained.model, [draw_molecules("ethanol", 8).corrupted])
    filled = padded(batches)
    difference = _require_same(trained, filled[0], recorder, _TOLERANCES["fp32"])
    actions: Actions = {
        "ordinary": _always(ordinary_step(trained, batches)),
        "ours": _always(recorded_step(trained, filled, recorder)),
    }
    _repeat(actions["ours"], 1)
    costs = interleaved(actions, args.steps, args.device, warm_up=2)
    shape = {"size": f"Equiformer {args.molecules}, 8 ethanol", "compared": "ours fp32", "lmax": 2, "layers": 6}
    return [_row(STEP, costs, difference, _OF_MOLECULES) | shape]


def _recorder(device: str) -> Recorder:
    recorder = recorder_for(torch.device(device))
    if recorder is None:
        raise RuntimeError(f"nothing records on a {device}")
    return recorder


def _require_same(trained: Trained, batch: Any, recorder: Recorder, tolerance: float) -> float:
    difference = largest_difference(trained, batch, recorder)
    if not difference <= tolerance:
        raise RuntimeError(f"a replay differs from an ordinary step by {difference:.1e}, allowed are {tolerance:g}")
    return difference


def _moved(sample: Sample, device: str) -> Sample:
    return Sample(*(batch.clone().to(device) for batch in sample))


def _one_mode(mode: Mode) -> Any:
    return pairing("fp32", "cpu")._replace(fairchem=mode, ours=mode)


def _always(action: Callable[[int], Any]) -> Callable[[int], Any]:
    return lambda _round: action(0)


def _repeat(action: Callable[[int], Any], rounds: int) -> None:
    """Until every size is recorded."""
    for _ in range(_REPEATS):
        for number in range(rounds):
            action(number)


def _row(measure: str, costs: Costs, difference: float, goal: tuple[str, Goal] | None) -> Row:
    return {
        "measure": measure,
        "costs": costs,
        "median": medians(costs),
        "times_less": ratios(costs),
        "largest_difference": difference,
        "goal": {"over": goal[0], **goal[1]._asdict()} if goal else None,
        "is_extrapolated": False,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Conditions, the table, and what failed."""
    names = ("fairchem", "fairchem_amp", "ordinary", "ours")
    header = ["network", "ours", "cost", *(f"{name}, ms" for name in names), *(f"less than {n}" for n in names[:-1])]
    rows = [
        [
            row["size"],
            row["compared"].removeprefix("ours "),
            row["measure"].split(",")[0],
            *(f"{1e3 * row['median'][name]:.1f}" if name in row["median"] else "" for name in names),
            *(ratio_cell(row["times_less"][name]) if name in row["times_less"] else "" for name in names[:-1]),
            f"{row['goal']['required']:g} ({row['goal']['aim']:g}) over {row['goal']['over']}" if row["goal"] else "",
        ]
        for row in report["table"]
    ]
    lines = [
        f"On {describe_machine(report['hardware'])}. `ours` is recorded, `ordinary` is ours without graphs. Medians, "
        "and how many times less `ours` costs with quartiles; goals are required (aim).",
        "",
        *(table([*header, "goal"], rows) if rows else []),
        *(f"\nNot measured: {what}: {' '.join(why.split())}" for what, why in report["failures"].items()),
    ]
    return "\n".join(lines)


def _write(report: Mapping[str, Any], folder: Path, prefix: str) -> Path:
    path = dated(folder, prefix, report["date"])
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report) + "\n")
    rows = [row for row in report["table"] if row["times_less"].keys() == report["table"][0]["times_less"].keys()]
    if rows:
        plot_ratios(rows, path.with_suffix(".png"), describe_machine(report["hardware"]))
    return path


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 4], help="structures a batch (default: 8 and 4)")
    parser.add_argument("--precision", nargs="+", choices=list(_TOLERANCES), default=["bf16", "tf32", "fp32"])
    parser.add_argument("--only", choices=("83m", "molecules"), help="instead of both")
    parser.add_argument("--steps", type=int, default=6, help="rounds, each with its own batch (default: 6)")
    parser.add_argument("--data", default=SYNTHETIC, help=f"folder of LMDBs, or '{SYNTHETIC}' (default)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder for the results")
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lmax", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--channels", type=int, default=128, help=argparse.SUPPRESS)
    parser.add_argument("--molecules", default="l2", choices=("l2", "mini"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return args


if __name__ == "__main__":
    written = main()
    print(f"written to {written}, and beside it the table and the plot")
