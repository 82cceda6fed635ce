"""What surrounds a step: loader and corruption, checkpoints, and a second rank.

    python benchmarks/pipeline.py                       # all parts; ten minutes on two CPU cores
    python benchmarks/pipeline.py --only loader --data data/oc20_mini/train

- **loader**: structures per second of one worker from an LMDB, as fairchem reads and collates them, and with the
  structures corrupted; the difference is the price of corruption, and its share of a step of the mini model on one core
  is printed beside it. The two alternate batch by batch on the same structures.
- **neighbours**: milliseconds per structure to find the neighbours of a batch (12 Å, at most 20), which workers do with
  `optim.loader_graph`, and to read them, which is all that is then left in front of the model. They alternate.
- **optimizer**: milliseconds of what follows the gradients of a model with so many million parameters: clipping, AdamW
  and averages, by fairchem and by ours. Gradients are below the limit of clipping, so that ours does not scale them.
  Each part alternates with its counterpart.
- **checkpoint**: seconds for which training stands still to save a state of the size of a model with so many million
  parameters (weights, averages and AdamW's two moments, float32): fairchem's `torch.save` in place, and ours, synced,
  renamed and with the predecessor kept. They alternate. Also the time to check one before it is used.
- **ranks**: training steps per second of one rank, and of two at once over gloo, each with one thread and batches of
  the same size; efficiency is the ratio per rank. They alternate.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from contestants import build_all, loss
from fairchem.core.common.utils import save_checkpoint
from fairchem.core.datasets import LmdbDataset, data_list_collater
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from machine import hardware
from sizes import paper_settings
from structures import DEFAULT_FOLDER, OBJECTIVE, SYNTHETIC, draw_samples
from torch.nn.parallel import DistributedDataParallel

from dens_plugin.backbones.neighbours import with_neighbours
from dens_plugin.compat import damage
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.training.checkpoints import NEWEST, commit
from dens_plugin.training.loading import loader_search
from dens_plugin.training.optimizer import Averages, clip_gradients, with_fused_step

_SEED = 0
_MODEL = {"lmax": 2, "layers": 2, "channels": 32}
_PAPERS_NEIGHBOURS = {"max_neighbors": 20, "max_radius": 12.0}
_CLIP = 100.0
_BLOCK = [(1536, 896), (896, 600), *[(128, 128)] * 20, *[(128,)] * 20, (7, 128, 256), (7, 256, 128)]

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print a table and write everything to a file, whose path is returned."""
    args = _arguments(argv)
    torch.set_num_threads(1)
    measured = {name: _PARTS[name](args) for name in ([args.only] if args.only else _PARTS)}
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {key: str(value) for key, value in vars(args).items() if key != "out"},
        "hardware": hardware("cpu"),
        **measured,
    }
    path = Path(args.out) / "pipeline.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    for name, row in measured.items():
        print(f"\n{name}")
        for key, value in row.items():
            print(f"  {key:44} {value if isinstance(value, (str, int)) else format(value, '.4g')}")
    return path


def measure_loader(args: argparse.Namespace) -> Row:
    """Read, collate and corrupt batches of one data set, in turn."""
    step = 1 / _rate(args, world_size=1)  # first, as LMDB opens a file once per process and its forks
    dataset = LmdbDataset({"src": str(args.data)})
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(_SEED)).tolist()
    batches = [order[start : start + args.batch] for start in range(0, args.rounds * args.batch, args.batch)]
    read, corrupt, atoms = [], [], 0
    for number, batch in enumerate(batches):
        started = time.perf_counter()
        collated = data_list_collater([dataset[index] for index in batch], otf_graph=True)
        collected = time.perf_counter()
        OBJECTIVE.prepare(collated, StructureRandom(_SEED, number))
        read.append(collected - started)
        corrupt.append(time.perf_counter() - collected)
        atoms += len(collated.pos)
    both = [first + second for first, second in zip(read, corrupt, strict=True)]
    per_structure = statistics.median(corrupt) / args.batch
    return {
        "atoms per structure": atoms / (args.batch * len(batches)),
        "fairchem, structures/s and worker": args.batch / statistics.median(read),
        "with corruption, structures/s and worker": args.batch / statistics.median(both),
        "corruption, ms per structure": 1000 * per_structure,
        "step of the mini model, ms per structure": 1000 * step,
        "corruption, share of that step": per_structure / step,
    }


def measure_neighbours(args: argparse.Namespace) -> Row:
    """Find the neighbours of the same batches in the model and in front of it, in turn."""
    dataset = LmdbDataset({"src": str(args.data)})
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(_SEED)).tolist()
    backbone = build_all("equiformer_v2", _settings() | _PAPERS_NEIGHBOURS, "cpu")["ours"].backbone
    search = loader_search(backbone, {"loader_graph": True})
    seconds: dict[str, list[float]] = {"in the model": [], "in a worker": [], "read by the model": []}
    edges = 0
    for start in range(0, args.rounds * args.batch, args.batch):
        batch = data_list_collater([dataset[order[at % len(order)]] for at in range(start, start + args.batch)], True)
        prepared = with_neighbours(batch, search)
        seconds["in the model"].append(_timed(functools.partial(backbone.generate_graph, batch)))
        seconds["in a worker"].append(_timed(functools.partial(with_neighbours, batch, search)))
        seconds["read by the model"].append(_timed(functools.partial(backbone.generate_graph, prepared)))
        edges += backbone.generate_graph(prepared).edge_index.shape[1]
    found = {f"{where}, ms per structure": _milliseconds(values) / args.batch for where, values in seconds.items()}
    return {"edges per structure": edges / (args.rounds * args.batch), **found}


def measure_optimizer(args: argparse.Namespace) -> Row:
    """Clip, step and average by fairchem's ways and by ours, in turn."""
    host, ours = _parameters(args.millions), _parameters(args.millions)
    fused = with_fused_step({}, ours)["optimizer_params"]
    pairs = {
        "clipping": (lambda: torch.nn.utils.clip_grad_norm_(host, _CLIP), lambda: clip_gradients(ours, _CLIP)),
        "AdamW": (torch.optim.AdamW(host).step, torch.optim.AdamW(ours, **fused).step),
        "averages": (ExponentialMovingAverage(host, 0.999).update, Averages(ours, 0.999).update),
    }
    row: Row = {"parameters, M": sum(value.numel() for value in host) / 1e6, "tensors": len(host)}
    total = [0.0, 0.0]
    for name, pair in pairs.items():
        for action in pair:
            action()  # makes the moments
        seconds = [[_timed(action) for action in pair] for _ in range(args.rounds)]
        times = [_milliseconds(values) for values in zip(*seconds, strict=True)]
        row |= {f"{name}, fairchem, ms": times[0], f"{name}, ours, ms": times[1]}
        total = [before + time for before, time in zip(total, times, strict=True)]
    return row | {"all, fairchem, ms": total[0], "all, ours, ms": total[1], "fairchem / ours": total[0] / total[1]}


def _parameters(millions: int) -> list[torch.nn.Parameter]:
    """Parameters in the shapes of EquiformerV2's blocks, with gradients."""
    generator = torch.Generator().manual_seed(_SEED)
    made: list[torch.nn.Parameter] = []
    while sum(value.numel() for value in made) < 1e6 * millions:
        for shape in _BLOCK:
            value = torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator))
            value.grad = 1e-4 * torch.randn(shape, generator=generator)
            made.append(value)
    return made


def measure_checkpoint(args: argparse.Namespace) -> Row:
    """Save a state by fairchem's function and by ours, in turn, into one folder."""
    part = {f"block.{index}": torch.randn(args.millions * 10_000) for index in range(100)}
    state = {"state_dict": part, "ema": _copied(part), "exp_avg": _copied(part), "exp_avg_sq": _copied(part)}
    seconds: dict[str, list[float]] = {"fairchem": [], "ours": [], "check": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / NEWEST
        for _ in range(args.saves):
            seconds["fairchem"].append(_timed(lambda: save_checkpoint(state, folder, "host.pt")))
            seconds["ours"].append(_timed(lambda: _save_durably(state, path)))
            seconds["check"].append(_timed(lambda: damage(path)))
        size = path.stat().st_size
    ratios = [ours / host for ours, host in zip(seconds["ours"], seconds["fairchem"], strict=True)]
    return {
        "parameters, M": args.millions,
        "file, GB": size / 1e9,
        "fairchem's save, s": statistics.median(seconds["fairchem"]),
        "ours, synced, s": statistics.median(seconds["ours"]),
        "ours / fairchem": statistics.median(ratios),
        "check before use, s": statistics.median(seconds["check"]),
    }


def _save_durably(state: dict[str, Any], path: Path) -> None:
    temporary = path.with_name("writing")
    save_checkpoint(state, str(path.parent), temporary.name)
    commit(temporary, path, keep=2)


def measure_ranks(args: argparse.Namespace) -> Row:
    """Steps of one rank and of two, in turn."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.turns):
        for world_size, found in rates.items():
            found.append(_rate(args, world_size))
    pairs = [two / (2 * one) for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "structures/s, 1 rank": statistics.median(rates[1]),
        "structures/s, 2 ranks": statistics.median(rates[2]),
        "efficiency of the second rank": statistics.median(pairs),
        "lowest and highest of the turns": f"{min(pairs):.3f}-{max(pairs):.3f}",
    }


def _rate(args: argparse.Namespace, world_size: int) -> float:
    """Structures per second of all ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, folder, args.data, args.batch, args.rounds)
        mp.start_processes(_rank_main, arguments, nprocs=world_size, start_method="fork")
        seconds = [float((Path(folder) / str(rank)).read_text()) for rank in range(world_size)]
    return world_size * args.batch * args.rounds / max(seconds)


def _rank_main(rank: int, world_size: int, folder: str, data: Path, batch: int, rounds: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    torch.manual_seed(_SEED)
    source = None if data == DEFAULT_FOLDER else str(data)
    samples = draw_samples(source, count=8, size=batch, seed=_SEED, device="cpu")  # the same on all ranks: equal work
    steps = _steps(DistributedDataParallel(build_all("equiformer_v2", _settings(), "cpu")["ours"]))
    steps(samples[0].corrupted)
    torch.distributed.barrier()
    seconds = _timed(lambda: [steps(samples[number % 8].corrupted) for number in range(rounds)])
    (Path(folder) / str(rank)).write_text(str(seconds))
    torch.distributed.destroy_process_group()


def _settings() -> dict[str, Any]:
    return paper_settings("equiformer_v2", **_MODEL) | {"max_neighbors": 12, "max_radius": 6.0}


def _steps(network: torch.nn.Module) -> Callable[[Any], None]:
    """A function that trains a network by one step on a batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss(network(batch), batch).backward()
        optimizer.step()

    return step


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def _milliseconds(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


_PARTS = {
    "loader": measure_loader,
    "neighbours": measure_neighbours,
    "optimizer": measure_optimizer,
    "checkpoint": measure_checkpoint,
    "ranks": measure_ranks,
}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_PARTS, help="one part instead of all")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="folder of an LMDB data set")
    parser.add_argument("--batch", type=int, default=4, help="structures per batch")
    parser.add_argument("--rounds", type=int, default=30, help="batches of the loader, steps of a rank or an optimiser")
    parser.add_argument("--turns", type=int, default=3, help="how often one and two ranks alternate")
    parser.add_argument("--millions", type=int, default=83, help="parameters of checkpoint and optimiser, in millions")
    parser.add_argument("--saves", type=int, default=5, help="how often each way of saving is timed")
    parser.add_argument("--folder", help="where to save; a temporary folder by default")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder of the results")
    args = parser.parse_args(argv)
    if args.only not in ("checkpoint", "optimizer") and str(args.data) != SYNTHETIC and not args.data.is_dir():
        parser.error(f"--data: there is no folder '{args.data}'; `make oc20-mini` or `dens demo` make one")
    return args


if __name__ == "__main__":
    main()
