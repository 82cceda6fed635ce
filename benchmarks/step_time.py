"""Time and memory of a training step and of inference: this package beside fairchem's networks and its own DeNS.

    python benchmarks/step_time.py                                  # degrees 4 and 6, six layers, two CPU threads
    python benchmarks/step_time.py --device cuda --extrapolate 12
    python benchmarks/step_time.py --model escn                     # eSCN, of which fairchem has no DeNS
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=268435456
    python benchmarks/step_time.py                                  # the same where glibc keeps its pages

The last two lines matter on a CPU: by default glibc returns large blocks to the kernel, and page faults make fairchem's
step 1.4 to 1.65 times as long. Name the allocator with every figure; the results record the ``MALLOC_*`` variables.

How it is measured:

- Before anything is timed, all networks get the same weights and must predict the same (`contestants.require_equal`).
- A round is one batch through all contestants, one after the other; the order rotates from round to round, and every
  round has another batch. A ratio is the median over rounds of the ratio within a round, with quartiles, so that what
  else the machine does affects both sides. One round before the first is not counted.
- A training step is forward, loss, backward and AdamW; batches are collated and corrupted beforehand, as in a loader's
  workers. Dropout has the same seed for all contestants of a round.
- Memory is that of the largest batch, in a fresh process for each figure: two steps, so that AdamW's moments are there,
  or two inferences. It is their peak above what the process had before it built the network: on CUDA of allocated
  bytes, on a CPU of resident pages, from the kernel's own high-water mark (``VmHWM``, which can be reset, while
  ``ru_maxrss`` is inherited from the parent process). A toy network runs first, so that lazy imports and compiled
  functions do not count. Linux only; ``--no-memory`` leaves it out.
- ``--extrapolate N`` repeats all at half the layers, and adds N - layers blocks at the median cost of one: all
  backbones are the same network, and only the heads differ.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from contestants import CONTESTANTS, Settings, build_all, loss, paper_settings, require_equal
from structures import SYNTHETIC, Sample, corrupted_atoms, describe, draw_samples
from torch import nn
from torch_geometric.data import Batch

STEP, INFERENCE, STEP_MEMORY, INFERENCE_MEMORY = "step, s", "inference, s", "step, MiB", "inference, MiB"
GOALS = {
    (STEP, "plain"): 1.00,
    (STEP, "fairchem_dens"): 0.90,
    (INFERENCE, "fairchem_dens"): 0.93,
    (STEP_MEMORY, "fairchem_dens"): 0.95,
}

_SEED = 0

Costs = dict[str, list[float]]  # contestant -> one figure a round


class Ratio(NamedTuple):
    """Cost of ``ours`` over that of another contestant, over all rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    goal: float | None


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print the table and write everything to a file, whose path is returned."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    samples = _samples(args)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in vars(args).items() if key != "out"}
        | {"data": describe(samples, args.data)},
        "hardware": hardware(args.device),
        "runs": [],
        "table": [],
    }
    for lmax in args.lmax:
        _add_degree(report, args, samples, lmax)
        path = _write(report, Path(args.out))  # after every degree: the next may take long, or all memory
    print(markdown(report))
    return path


def interleaved(actions: Mapping[str, Callable[[int], Any]], rounds: int, device: str) -> Costs:
    """Seconds of every action in every round, in an order that rotates.

    Args:
        actions: name -> what to do in a round, given its number.
        rounds: number of rounds; one more comes first and is not counted.
        device: what to wait for.
    """
    names = list(actions)
    seconds: Costs = {name: [] for name in names}
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            torch.manual_seed(_SEED + number + 1)
            gc.collect()
            elapsed = _elapsed(lambda: actions[name](max(number, 0)), device)  # noqa: B023  (called at once)
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def ratio(measure: str, costs: Costs, other: str) -> Ratio:
    """Quartiles of ours / other within each round, beside the goal."""
    ratios = np.array(costs["ours"]) / np.array(costs[other])
    lower, median, upper = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return Ratio(median, lower, upper, GOALS.get((measure, other)))


def peak_memory(args: argparse.Namespace, measure: str, name: str, *, lmax: int, layers: int) -> float:
    """MiB at the peak of two steps or inferences on the largest batch; for a process that has done nothing else."""
    torch.set_num_threads(args.threads)
    by_size = sorted(_samples(args), key=lambda sample: len(sample.clean.pos))
    _run_twice(args, measure, name, paper_settings(args.model, lmax=1, layers=1, channels=8), by_size[0])
    gc.collect()
    before = _memory(args.device)
    settings = paper_settings(args.model, lmax=lmax, layers=layers, channels=args.channels)
    return (_run_twice(args, measure, name, settings, by_size[-1]) - before) / 2**20


def hardware(device: str) -> dict[str, Any]:
    """What a figure must be quoted with."""
    config = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "gemm": blas.group(1) if blas else "unknown",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "allocator": {key: value for key, value in os.environ.items() if key.startswith(("MALLOC_", "LD_PRELOAD"))},
        "torch_config": config,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The table, and one line about what it was measured on."""
    machine, data = report["hardware"], report["settings"]["data"]
    names = list(CONTESTANTS[report["settings"]["model"]])
    ratios = [f"ours / {name} | goal" for name in names if name != "ours"]
    allocator = " ".join(f"{key}={value}" for key, value in machine["allocator"].items()) or "default"
    lines = [
        f"{report['settings']['model']} on {machine['gpu'] or machine['cpu']}, {machine['threads']} of "
        f"{machine['cores']} cores, torch {machine['torch']}, GEMM {machine['gemm']}, allocator {allocator}; "
        f"{len(data['atoms'])} batches of {data['source']}, {np.mean(data['atoms']):.0f} atoms each, "
        f"{data['corrupted_share']:.3f} of the free atoms corrupted. Medians (quartiles).",
        "",
        f"| lmax | layers | cost | {' | '.join(names + ratios)} |",
        "|---|---|---|" + "---|" * (len(names) + 2 * len(ratios)),
    ]
    return "\n".join(lines + [_table_line(row) for row in report["table"]])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONTESTANTS, default="equiformer_v2")
    parser.add_argument("--lmax", type=int, nargs="+", default=[4, 6], help="degrees (default: 4 6)")
    parser.add_argument("--layers", type=int, default=6, help="default: 6; the paper's is 12")
    parser.add_argument("--batch", type=int, default=2, help="structures a batch (default: 2)")
    parser.add_argument("--steps", type=int, default=7, help="rounds, each with its own batch (default: 7)")
    parser.add_argument("--data", help=f"folder of LMDBs, or '{SYNTHETIC}' (default: data/oc20_mini/train if there)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--extrapolate", type=int, metavar="N", help="also estimate the cost of N layers")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it (default)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder for the JSON file")
    parser.add_argument("--channels", type=int, default=128, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("layers", "batch", "steps", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.extrapolate and args.layers < 2:
        parser.error(f"--extrapolate needs --layers of at least 2 to halve, got {args.layers}")
    return args


def _samples(args: argparse.Namespace) -> list[Sample]:
    return draw_samples(args.data, count=args.steps, size=args.batch, seed=_SEED, device=args.device)


def _add_degree(report: dict[str, Any], args: argparse.Namespace, samples: list[Sample], lmax: int) -> None:
    layers = [args.layers // 2, args.layers] if args.extrapolate else [args.layers]
    runs = [_run(args, samples, lmax=lmax, layers=number) for number in layers]
    report["runs"] += runs
    if args.extrapolate:
        runs = [*runs, _extrapolated(*runs, args.extrapolate)]
    report["table"] += [row for run in runs for row in _rows(run)]


def _run(args: argparse.Namespace, samples: list[Sample], *, lmax: int, layers: int) -> dict[str, Any]:
    """Check, time and weigh the contestants at one size."""
    torch.manual_seed(_SEED)
    settings = paper_settings(args.model, lmax=lmax, layers=layers, channels=args.channels)
    networks = build_all(args.model, settings, args.device)
    errors = require_equal(args.model, networks, max(samples, key=corrupted_atoms))
    costs = {
        INFERENCE: interleaved(_inference_actions(networks, samples), args.steps, args.device),
        STEP: interleaved(_step_actions(args.model, networks, samples), args.steps, args.device),
    }
    del networks
    for measure in (STEP_MEMORY, INFERENCE_MEMORY) if args.memory else ():
        costs[measure] = {name: [_in_fresh_process(args, measure, name, lmax, layers)] for name in costs[STEP]}
    run = {"lmax": lmax, "layers": layers, "is_extrapolated": False, "largest_differences": errors, "costs": costs}
    print(*map(_table_line, _rows(run)), sep="\n", file=sys.stderr)
    return run


def _step_actions(
    model: str, networks: Mapping[str, nn.Module], samples: list[Sample]
) -> dict[str, Callable[[int], None]]:
    def step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(batch), batch).backward()
        optimizer.step()

    def action(name: str, network: nn.Module) -> Callable[[int], None]:
        batches = [CONTESTANTS[model][name].training_batch(sample) for sample in samples]
        optimizer = torch.optim.AdamW(network.train().parameters(), lr=2e-4, weight_decay=1e-3)
        return lambda number: step(network, optimizer, batches[number])

    return {name: action(name, network) for name, network in networks.items()}


def _inference_actions(networks: Mapping[str, nn.Module], samples: list[Sample]) -> dict[str, Callable[[int], None]]:
    def infer(network: nn.Module, number: int) -> None:
        with torch.no_grad():
            network(samples[number].clean)

    def action(network: nn.Module) -> Callable[[int], None]:
        network.eval()
        return lambda number: infer(network, number)

    return {name: action(network) for name, network in networks.items()}


def _elapsed(action: Callable[[], None], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _in_fresh_process(args: argparse.Namespace, measure: str, name: str, lmax: int, layers: int) -> float:
    """`peak_memory` in a process of its own; NaN if that was killed, as for want of memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(peak_memory, args, measure, name, lmax=lmax, layers=layers).result()
        except BrokenProcessPool:
            return float("nan")


def _run_twice(args: argparse.Namespace, measure: str, name: str, settings: Settings, sample: Sample) -> int:
    """Bytes at the peak of two steps or inferences of a new network."""
    networks = {name: CONTESTANTS[args.model][name].build(settings).to(args.device)}
    is_step = measure == STEP_MEMORY
    actions = _step_actions(args.model, networks, [sample]) if is_step else _inference_actions(networks, [sample])
    _reset_peak(args.device)
    actions[name](0)
    actions[name](0)
    return torch.cuda.max_memory_allocated() if args.device == "cuda" else _process_status("VmHWM")


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to VmRSS


def _memory(device: str) -> int:
    """Bytes that this process holds."""
    return torch.cuda.memory_allocated() if device == "cuda" else _process_status("VmRSS")


def _process_status(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status).group(1)) * 1024


def _cpu_model() -> str:
    try:
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _rows(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row of the table for each measure."""
    return [
        {
            "lmax": run["lmax"],
            "layers": run["layers"],
            "is_extrapolated": run["is_extrapolated"],
            "measure": measure,
            "median": {name: float(np.median(values)) for name, values in run["costs"][measure].items()},
            "ours_over": {
                other: ratio(measure, run["costs"][measure], other)._asdict()
                for other in run["costs"][measure]
                if other != "ours"
            },
        }
        for measure in run["costs"]
    ]


def _extrapolated(half: Mapping[str, Any], full: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """A run with more blocks, each at the median of what the contestants pay for one: they have the same blocks."""
    costs = {}
    for measure, of_full in full["costs"].items():
        low, high = (
            np.array([np.median(values[name]) for name in of_full]) for values in (half["costs"][measure], of_full)
        )
        block = np.median(high - low) / (full["layers"] - half["layers"])
        more = high + block * (layers - full["layers"])
        costs[measure] = {name: [float(cost)] for name, cost in zip(of_full, more, strict=True)}
    return {"lmax": full["lmax"], "layers": layers, "is_extrapolated": True, "costs": costs}


def _table_line(row: Mapping[str, Any]) -> str:
    medians = [f"{median:.4g}" for median in row["median"].values()]
    ratios = [
        cell
        for value in row["ours_over"].values()
        for cell in (
            f"{value['median']:.3f} ({value['lower_quartile']:.3f}-{value['upper_quartile']:.3f})",
            f"{value['goal']:.2f}" if value["goal"] else "",
        )
    ]
    layers = f"{row['layers']}{' (extrapolated)' if row['is_extrapolated'] else ''}"
    return f"| {' | '.join([str(row['lmax']), layers, row['measure'], *medians, *ratios])} |"


def _write(report: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W", "", report["date"].split("+")[0])
    path = folder / f"step_time_{report['settings']['device']}_{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    print(f"\nwritten to {main()}")
