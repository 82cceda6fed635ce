"""How many kernels a GPU would be asked to run in a training step, by the place in the code that asks: on any machine.

    python benchmarks/launches.py                      # the 83M network
    python benchmarks/launches.py --model escn --json
    python benchmarks/launches.py --precision bf16 --by file

Forward and backward pass of a corrupted batch whose neighbours a loader found, run on the device ``meta``
(`pretended_gpu`). Operations that only look at a tensor in another way or ask for memory launch nothing; every other
one counts once, though a few take two or more kernels (``slice_backward`` writes zeros and then a part); Triton's count
by themselves. An operation of the backward pass counts where the forward one stands, or in the function that we wrote.
The optimiser is left out: it is a handful of ``foreach`` operations.

Layers are alike, so that a network of one and one of two layers say what one of twelve takes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from contestants import CONTESTANTS, build_one, loss
from pretended_gpu import move_model, moved, pretended_gpu
from results import table
from sizes import SIZES, Settings, paper_settings
from structures import SYNTHETIC, Sample, draw_samples
from torch.utils._python_dispatch import TorchDispatchMode

from dens_plugin.backbones.neighbours import with_neighbours
from dens_plugin.fields import ROWS
from dens_plugin.training.loading import loader_search

_SUMS = "sums of gradients"  # of a tensor that is used more than once: autograd's own
_FREE = re.compile(r"(new_)?empty|_unsafe_view|detach|alias|lift|(un)?squeeze_")
_FRAME = re.compile(r'File "(.*?)", line \d+, in (.*)')
_PACKAGES = ("dens_plugin", "fairchem", "e3nn")

Places = Counter[tuple[str, bool]]
"""(place, whether it is a kernel of Triton's) -> how many."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Count, print a table or JSON, and return what was found."""
    args = _arguments(argv)
    settings = paper_settings(args.model, size=args.size, channels=args.channels, lmax=args.lmax)
    report = summary(launches(args.model, settings, args.precision), args.by)
    print(json.dumps(report, indent=1) if args.json else markdown(report, args.rows))
    return report


def launches(model: str, settings: Settings, precision: str = "fp32") -> Places:
    """Of a training step of our network with as many layers as its settings say.

    Args:
        model: ``equiformer_v2`` or ``escn``.
        settings: its hyper-parameters.
        precision: of our backbone.
    """
    sample = draw_samples(SYNTHETIC, count=1, size=2, seed=0, device="cpu")[0]
    first, second = (_of_step(model, settings | {"num_layers": layers}, sample, precision) for layers in (1, 2))
    more = settings["num_layers"] - 1
    return Counter({key: first[key] + more * (second[key] - first[key]) for key in first | second})


def summary(places: Places, by: str = "function") -> dict[str, Any]:
    """Sums, and those by place in falling order."""
    rows: dict[str, list[int]] = {}
    for (place, is_triton), count in places.items():
        row = rows.setdefault(place if by == "function" else place.split(":")[0], [0, 0])
        row[int(is_triton)] += count
    ordered = sorted(rows.items(), key=lambda item: (-sum(item[1]), item[0]))
    operations, triton = (sum(row[column] for row in rows.values()) for column in (0, 1))
    return {"operations": operations, "triton": triton, "total": operations + triton, "places": dict(ordered)}


def markdown(report: dict[str, Any], rows: int) -> str:
    """Sums and the first places as a table."""
    head = f"{report['total']} launches, {report['triton']} of them Triton's"
    shown = list(report["places"].items())
    cells = [[place, *map(str, counts)] for place, counts in shown[:rows]]
    if len(shown) > rows:
        rest = [str(sum(counts[column] for _, counts in shown[rows:])) for column in (0, 1)]
        cells.append([f"{len(shown) - rows} others", *rest])
    return "\n".join([head, "", *table(["place", "operations", "Triton"], cells)])


def _of_step(model: str, settings: Settings, sample: Sample, precision: str) -> Places:
    network = build_one(model, "ours", settings, "cpu", precision).train()
    batch = sample.corrupted.clone()
    batch[ROWS] = {key: rows.listed() for key, rows in batch[ROWS].items()}
    batch = with_neighbours(batch, loader_search(network, {"loader_graph": True}))
    if model == "escn":
        network(batch)  # which makes fairchem's mappings
    on_device = batch.clone()
    for key in list(batch.keys()):
        on_device[key] = moved(batch[key])
    network = move_model(network)
    counts = _Counts()

    def step() -> None:
        network.zero_grad()
        loss(network(on_device), on_device).backward()

    with pretended_gpu(counts.of_triton):
        step()  # which makes constants
        counts.places.clear()
        with counts, torch.autograd.set_detect_anomaly(True, check_nan=False):
            step()
    return counts.places


class _Counts(TorchDispatchMode):
    """Operations by place; those of autograd's own nodes by the place of their forward operation."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Places = Counter()

    def of_triton(self, kernel: Any) -> None:
        """One of Triton's kernels."""
        self.places[_place(sys._getframe()), True] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count an operation."""
        if not _is_free(function):
            self.places[_place(sys._getframe()), False] += 1
        return function(*args, **(kwargs or {}))


def _is_free(function: Any) -> bool:
    """Whether an operation launches nothing: a view, or memory that nothing is written to."""
    returns = function._schema.returns
    is_view = bool(returns) and all(of.alias_info is not None and not of.alias_info.is_write for of in returns)
    return is_view or _FREE.match(function._schema.name.removeprefix("aten::")) is not None


def _place(frame: Any) -> str:
    """The innermost function of the packages that asks for an operation, as ``file:function``."""
    for filename, function in _frames(frame):
        place = _in_package(filename, function)
        if place is not None:
            return place
        if filename.endswith(("torch/autograd/graph.py", "torch/autograd/__init__.py")):
            break
    node = torch._C._current_autograd_node()
    lines = node.metadata.get("traceback_", []) if node is not None else []
    for line in reversed(lines):
        found = _FRAME.search(line)
        place = _in_package(*found.groups()) if found else None
        if place is not None:
            return f"{place} (backward)"
    return _SUMS


def _frames(frame: Any) -> Iterator[tuple[str, str]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back


def _in_package(filename: str, function: str) -> str | None:
    parts = Path(filename).parts
    if parts[-1] in ("launches.py", "pretended_gpu.py", "availability.py"):
        return None
    if parts[-2] == "benchmarks":
        return f"benchmarks/{parts[-1]}:{function}"
    for package in _PACKAGES:
        if package in parts:
            start = len(parts) - 1 - parts[::-1].index(package)
            return f"{'/'.join(parts[start:])}:{function}"
    return None


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(CONTESTANTS), default="equiformer_v2")
    parser.add_argument("--size", choices=SIZES, default="83m")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--channels", type=int, default=128, help="fewer make a toy for tests")
    parser.add_argument("--lmax", type=int, default=None, help="another degree than the paper's")
    parser.add_argument("--by", choices=("function", "file"), default="function")
    parser.add_argument("--rows", type=int, default=40, help="of the table")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
