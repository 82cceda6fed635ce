"""Floating point operations of matrix products: how much of a step or an inference is arithmetic, and how much is not.

    python benchmarks/products.py                     # the 83M network
    python benchmarks/products.py --layers 2 --lmax 4

Every product of a training step (forward and backward) and of an inference is counted on one batch, for all contestants
of ``step_time.py``, and divided by what this machine's library reaches on the largest of them, alone and in a loop. No
reordering of the rest can be faster than that: who wants to know why a factor is missed finds the bound here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from contestants import build_all
from machine import describe_machine, hardware
from measures import INFERENCE, STEP
from modes import pairing
from results import dated, table
from sizes import SIZES, paper_settings
from structures import SYNTHETIC, draw_samples
from timing import inference_actions, step_actions
from torch.utils.flop_counter import FlopCounterMode

_ROWS, _INNER, _COLUMNS = 768, 1792, 1024  # the first convolution's product for the order 0 at the paper's size
_REPEATS = 20

Shape = Sequence[int]


def main(argv: Sequence[str] | None = None) -> Path:
    """Count, print the table, write everything, and return the path of the JSON file."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    settings = paper_settings("equiformer_v2", size=args.size, lmax=args.lmax, layers=args.layers)
    samples = draw_samples(args.data, count=1, size=1, seed=0, device="cpu")
    pair = pairing("fp32", "cpu")
    networks = build_all("equiformer_v2", settings, "cpu", pair)
    actions = {
        STEP: step_actions("equiformer_v2", networks, samples, pair),
        INFERENCE: inference_actions(networks, samples, pair),
    }
    rate = best_rate()
    counts = {
        measure: {name: operations(lambda action=action: action(0)) for name, action in of_measure.items()}
        for measure, of_measure in actions.items()
    }
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "atoms": len(samples[0].clean.pos),
        "hardware": hardware("cpu"),
        "rate": rate,
        "operations": counts,
    }
    path = dated(Path(args.out), "products", report["date"])
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report) + "\n")
    print(markdown(report))
    return path


def operations(action: Callable[[], Any]) -> int:
    """Of the matrix products within an action: two for each multiplication."""
    in_place = {torch.ops.aten.addmm_: _operations_in_place}  # which torch does not count
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        action()
    return int(counter.get_total_flops())


def _operations_in_place(_sum: Shape, left: Shape, right: Shape, **_options: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def best_rate() -> float:
    """Operations a second of a large product, the fastest of some repetitions."""
    left, right = torch.randn(_ROWS, _INNER), torch.randn(_INNER, _COLUMNS)
    out = torch.empty(_ROWS, _COLUMNS)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * _ROWS * _INNER * _COLUMNS / min(seconds)


def markdown(report: Mapping[str, Any]) -> str:
    """Conditions and the table."""
    rows = [
        [measure, name, f"{count / 1e9:.0f}", f"{count / report['rate']:.2f}"]
        for measure, counts in report["operations"].items()
        for name, count in counts.items()
    ]
    return "\n".join(
        [
            f"{describe_machine(report['hardware'])}; one structure of {report['atoms']} atoms; a product of "
            f"{_ROWS} x {_INNER} x {_COLUMNS} runs at {report['rate'] / 1e9:.0f} GFLOP/s.",
            "",
            *table(["of", "network", "matrix products, GFLOP", "at that rate, s"], rows),
        ]
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="83m", help="default: 83m")
    parser.add_argument("--lmax", type=int, help="another degree than the size's 6")
    parser.add_argument("--layers", type=int, help="another number of layers than the size's")
    parser.add_argument("--data", help=f"folder of LMDBs, or '{SYNTHETIC}' (default: data/oc20_mini/train if there)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder for the results")
    args = parser.parse_args(argv)
    for name in ("lmax", "layers", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return args


if __name__ == "__main__":
    print(f"written to {main()}")
