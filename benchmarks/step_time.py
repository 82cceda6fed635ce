"""Time and memory of a training step and of inference: this package beside fairchem's networks and its own DeNS.

    python benchmarks/step_time.py                                  # the 83M network, two CPU threads
    python benchmarks/step_time.py --size 83m --layers 6 --extrapolate 12
    python benchmarks/step_time.py --device cuda --batch 8 --precision fp32,tf32,amp,bf16
    python benchmarks/step_time.py --model escn                     # eSCN, of which fairchem has no DeNS
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=268435456
    python benchmarks/step_time.py                                  # the same where glibc keeps its pages

The last two lines matter on a CPU: by default glibc returns large blocks to the kernel, and page faults make fairchem's
step 1.4 to 1.65 times as long. Name the allocator with every figure; the results record its variables.

How it is measured:

- Contestants (`contestants`) get the same weights, and before anything is timed they must predict the same
  (`contestants.require_equal`, to the precision at hand).
- They take turns on the same batches (`timing`). A ratio is the median over rounds of the ratio within a round, with
  quartiles: how many times less ours costs. Rounds of warm-up come first. Dropout has the same seed for all contestants
  of a round.
- A training step is forward, loss, backward and AdamW: torch's default for fairchem's networks, as its trainer sets
  it up, and fused for ours, as ours does. "forward and backward" is the step without AdamW. Batches are collated and
  corrupted beforehand, and ours have their neighbours, as in a loader's workers; `plain`, `fairchem_dens` and
  `ours_host` search them in the step, as fairchem does, and in an inference all do. The
  precisions, and what of fairchem's each is compared with, are those of `modes`.
- Memory is that of the largest batch, in a fresh process for each figure (`memory`); ``--no-memory`` leaves it out.
- ``--extrapolate N`` repeats all at half the layers, and adds N - layers blocks at each contestant's cost of one.
- A size or precision that fails, as for want of memory, is named in the results, and the others go on.

A JSON file with every round, a table (Markdown) and a plot (PNG) are written to ``--out``.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contestants import CONTESTANTS, build_all, require_equal
from machine import hardware, is_tuned, onednn_calls
from measures import GRADIENTS, INFERENCE, INFERENCE_MEMORY, STEP, STEP_MEMORY, goal, medians, ratios
from memory import Case, in_fresh_process
from modes import PRECISIONS, pairing
from results import write
from sizes import SIZES, paper_settings
from structures import SYNTHETIC, Sample, corrupted_atoms, describe, draw_samples
from timing import inference_actions, interleaved, step_actions, warm_up_rounds

_SEED = 0
_MEMORY_OF = {STEP: STEP_MEMORY, INFERENCE: INFERENCE_MEMORY}

Run = dict[str, Any]  # what goes into the JSON file


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print the table, write everything, and return the path of the JSON file."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    samples = _draw(args)
    report: Run = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in vars(args).items() if key != "out"}
        | {"data": describe(samples, args.data)},
        "hardware": hardware(args.device),
        "runs": [],
        "table": [],
        "failures": {},
    }
    for size in args.size:
        for precision in args.precision:
            for lmax in args.lmax:
                _add(report, args, samples, size=size, precision=precision, lmax=lmax)
                path = write(report, Path(args.out), f"step_time_{args.device}")  # as the next may end the process
    print(path.with_suffix(".md").read_text())
    return path


def extrapolated(half: Run, full: Run, layers: int) -> Run:
    """A run with more blocks, each at the median of what the contestant pays for one."""
    costs = {}
    for measure, of_full in full["costs"].items():
        low, high = medians(half["costs"][measure]), medians(of_full)
        block = {name: max(0, high[name] - low[name]) / (full["layers"] - half["layers"]) for name in high}
        costs[measure] = {name: [high[name] + block[name] * (layers - full["layers"])] for name in high}
    return full | {"layers": layers, "is_extrapolated": True, "costs": costs}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONTESTANTS, default="equiformer_v2")
    parser.add_argument("--size", type=_listed(SIZES), default=["83m"], help=f"of {', '.join(SIZES)} (default: 83m)")
    parser.add_argument(
        "--precision", type=_listed(PRECISIONS), default=["fp32"], help=f"of {', '.join(PRECISIONS)} (default: fp32)"
    )
    parser.add_argument("--lmax", type=int, nargs="+", default=[None], help="other degrees than the size's 6")
    parser.add_argument("--layers", type=int, help="another number of layers than the size's")
    parser.add_argument("--only", choices=("step", "inference"), help="instead of both")
    parser.add_argument("--batch", type=int, default=1, help="structures a batch (default: 1)")
    parser.add_argument("--steps", type=int, default=5, help="rounds, each with its own batch (default: 5)")
    parser.add_argument("--data", help=f"folder of LMDBs, or '{SYNTHETIC}' (default: data/oc20_mini/train if there)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--extrapolate", type=int, metavar="N", help="also estimate the cost of N layers")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it (default)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder for the results")
    parser.add_argument("--channels", type=int, default=128, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _listed(allowed: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(allowed)}")
        return names

    return parse


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("batch", "steps", "threads", "layers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if args.extrapolate and (args.layers or 2) < 2:
        parser.error(f"--extrapolate needs --layers of at least 2 to halve, got {args.layers}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if args.model == "escn" and args.precision != ["fp32"]:
        parser.error("--precision: eSCN is measured in fp32 alone")
    try:
        for precision in args.precision:
            pairing(precision, args.device)
    except ValueError as error:
        parser.error(str(error))


def _draw(args: argparse.Namespace) -> list[Sample]:
    return draw_samples(args.data, count=args.steps, size=args.batch, seed=_SEED, device=args.device)


def _add(report: Run, args: argparse.Namespace, samples: list[Sample], **case: Any) -> None:
    """One size at one precision, with all its measures."""
    size, precision = case["size"], case["precision"]
    full = paper_settings(args.model, size=size, lmax=case["lmax"], layers=args.layers, channels=args.channels)
    depths = [full["num_layers"] // 2, full["num_layers"]] if args.extrapolate else [full["num_layers"]]
    try:
        runs = [_run(args, samples, size, full | {"num_layers": depth}, precision) for depth in depths]
    except RuntimeError as error:  # torch's out of memory, or networks that differ
        what = f"{size}, degree {full['lmax_list'][0]}, {precision}"
        report["failures"][what] = str(error)
        print(f"{what}: {error}", file=sys.stderr)
        return
    report["runs"] += runs
    runs = [*runs, extrapolated(*runs, args.extrapolate)] if args.extrapolate else runs
    tuned = is_tuned(report["hardware"])
    report["table"] += [row for run in runs for row in _rows(run, args.device, tuned)]


def _run(args: argparse.Namespace, samples: list[Sample], size: str, settings: dict[str, Any], precision: str) -> Run:
    """Check, time and weigh the contestants."""
    torch.manual_seed(_SEED)
    pair = pairing(precision, args.device)
    networks = build_all(args.model, settings, args.device, pair)
    errors = require_equal(args.model, networks, max(samples, key=corrupted_atoms), pair)
    actions = {
        INFERENCE: inference_actions(networks, samples, pair),
        STEP: step_actions(args.model, networks, samples, pair),
    }
    if args.only:
        actions = {measure: actions[measure] for measure in actions if measure.startswith(args.only)}
    calls = {name: onednn_calls(lambda: action(0)) for name, action in next(iter(actions.values())).items()}  # noqa: B023
    warm_up = warm_up_rounds(args.steps, args.device)
    costs = {key: interleaved(value, args.steps, args.device, warm_up) for key, value in actions.items()}
    if STEP in actions:
        costs[GRADIENTS] = {name: step.of_gradients[-args.steps :] for name, step in actions[STEP].items()}
    del networks, actions
    if args.memory:
        case = Case(args.model, settings, precision, args.device, args.threads, functools.partial(_draw, args))
        for measure in [_MEMORY_OF[timed] for timed in costs if timed in _MEMORY_OF]:
            costs[measure] = {name: [in_fresh_process(case, measure, name)] for name in calls}
    return {
        "size": size if args.model == "equiformer_v2" else args.model,
        "lmax": settings["lmax_list"][0],
        "layers": settings["num_layers"],
        "precision": precision,
        "compared": pair.label,
        "is_extrapolated": False,
        "largest_differences": errors,
        "onednn_calls": calls,
        "costs": costs,
    }


def _rows(run: Run, device: str, tuned: bool) -> list[dict[str, Any]]:
    """One row of the table for each measure."""
    shared = {key: run[key] for key in ("size", "lmax", "layers", "precision", "compared", "is_extrapolated")}
    rows = []
    for measure, costs in run["costs"].items():
        reach = goal(measure, precision=run["precision"], device=device, is_tuned=tuned)
        rows.append(
            shared
            | {"measure": measure, "median": medians(costs), "times_less": ratios(costs)}
            | {"goal": reach._asdict() if reach and "fairchem_dens" in costs else None}
        )
    return rows


if __name__ == "__main__":
    written = main()
    print(f"written to {written}, and beside it the table and the plot")
