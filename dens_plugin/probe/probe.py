"""`dens probe`: the largest batch of a config that fits into a device's memory, found by training steps.

The batches are the worst that an epoch can bring: the largest structures of the data set, or of a sample of it, all at
once. Nothing is saved, and the weights that the steps change are thrown away.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import new_trainer_context
from fairchem.core.datasets.base_dataset import Subset

from dens_plugin import compat
from dens_plugin.checks.config import require_sound
from dens_plugin.checks.files import config_files
from dens_plugin.checks.merged import merged_config
from dens_plugin.checks.options import as_python, is_override
from dens_plugin.columns import aligned
from dens_plugin.config_files import find_config
from dens_plugin.probe.batch_fit import Measured, largest_within, line_through, measure_up_to
from dens_plugin.probe.memory import Meter, bytes_of, meter_of
from dens_plugin.settings import count
from dens_plugin.training.loop import TrainingLoop
from dens_plugin.training.trainer import DeNSTrainer

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from torch_geometric.data import Data

_STEPS = 2  # at each size: the first may build what later ones reuse
_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dens probe`."""
    parser.description = "Propose the largest batch that fits, by training steps on the largest structures."
    parser.add_argument("--config-yml", type=Path, required=True, help="as of `dens train`")
    parser.add_argument("--memory", help="what must suffice, as 32GB; by default what this device has")
    parser.add_argument("--margin", type=float, default=0.1, help="share of it to leave free (default 0.1)")
    parser.add_argument("--most", type=int, default=64, help="the largest batch to try (default 64)")
    parser.add_argument("--sample", type=int, default=2000, help="structures looked at without metadata (default 2000)")
    parser.add_argument("--cpu", action="store_true", help="probe this machine's CPU and memory")
    parser.add_argument("--amp", action="store_true", help="as of `dens train`")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the config, as optim.max_epochs=1",
    )


def run(args: argparse.Namespace) -> None:
    """Run `dens probe`.

    Raises:
        ValueError: for a config that makes no sense, or if not even one structure fits.
    """
    limit = None if args.memory is None else bytes_of(args.memory)
    if not 0 <= args.margin < 1:
        raise ValueError(f"--margin must be from 0 to below 1, got {args.margin:g}")
    for name in ("most", "sample"):
        count(getattr(args, name), f"--{name}", least=1)
    for text in args.set:
        if not is_override(f"--{text}"):
            raise ValueError(f"--set {text!r} is no setting: write KEY=VALUE, as --set optim.max_epochs=1")
    config = _config(args)
    with _trainer_of(config) as trainer:
        meter = meter_of(trainer.device)
        budget = (1 - args.margin) * (meter.available() if limit is None else limit)
        structures = _largest_structures(trainer, args)
        points = measure_up_to(lambda size: _measured(trainer, structures, size, meter), budget=budget, most=args.most)
    _tell(points, structures, budget, args)


@contextlib.contextmanager
def _trainer_of(config: Mapping[str, Any]) -> Iterator[DeNSTrainer]:
    """The trainer of a config; what it writes goes away with the context, and logging shows warnings only."""
    previous = logging.root.manager.disable
    logging.disable(logging.INFO)  # fairchem logs a whole config and all names of parameters
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dens-probe-") as folder,
            new_trainer_context(config={**config, "run_dir": folder}) as context,
        ):
            if not isinstance(context.trainer, DeNSTrainer):
                raise ValueError(f"dens probe takes steps of dens_plugin.DeNSTrainer, got trainer: {config['trainer']}")
            yield context.trainer
    finally:
        logging.disable(previous)
        if distutils.initialized():  # fairchem leaves its process group behind where something fails
            distutils.cleanup()


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """The config of a training run on one rank, without the other splits and without files."""
    compat.prepare_host()
    path = find_config(args.config_yml)
    parser = flags.get_parser()
    cpu = args.cpu or not torch.cuda.is_available()
    options = ["--mode", "train", "--config-yml", str(path), "--debug"]
    options += ["--cpu"] * cpu + ["--amp"] * args.amp
    overrides = [as_python(f"--{text}") for text in args.set] + [
        f"--dataset.{split}=None" for split in ("val", "test", "relax")
    ]
    config = merged_config(parser.parse_args(options), overrides)
    require_sound(config, config_files(path))
    return config


def _largest_structures(trainer: DeNSTrainer, args: argparse.Namespace) -> list[Data]:
    """The largest structures first: of all of them where the data set says their sizes, else of a sample."""
    dataset: Dataset = trainer.train_loader.dataset  # reads with the checks of a training run
    sizes = _sizes(trainer.train_dataset)
    if sizes is None:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(dataset), generator=generator)[: args.sample].tolist()
        found = sorted(((int(dataset[index].natoms), index) for index in chosen), reverse=True)
        indices = [index for _, index in found[: args.most]]
    else:
        indices = np.argsort(-sizes, kind="stable")[: args.most].tolist()
    return [dataset[index] for index in indices]


def _sizes(dataset: Any) -> np.ndarray | None:
    """Numbers of atoms by the data set's metadata; None where there are none of exactly these structures."""
    if isinstance(dataset, Subset) or not dataset.metadata_hasattr("natoms"):
        return None
    return np.asarray(dataset._metadata["natoms"])


def _measured(trainer: DeNSTrainer, structures: Sequence[Data], size: int, meter: Meter) -> Measured:
    """Training steps on a batch of the ``size`` largest structures, some of them twice where there are fewer."""
    chosen = [structures[index % len(structures)] for index in range(size)]
    meter.start()
    seconds = math.inf
    try:
        for _ in range(_STEPS):
            started = time.perf_counter()
            _step(trainer, chosen)
            meter.wait()
            seconds = min(seconds, time.perf_counter() - started)
        peak = meter.peak()
    except (RuntimeError, MemoryError) as error:
        if not compat.is_out_of_memory(error):
            raise
        peak = math.inf
    trainer.optimizer.zero_grad(set_to_none=True)
    return Measured(size, peak, seconds)


def _step(trainer: DeNSTrainer, structures: Sequence[Data]) -> None:
    """A step of training, but for logs and files."""
    trainer.step = trainer.accumulate_steps  # one that ends with the optimiser
    TrainingLoop(trainer).optimise(trainer.train_loader.collate_fn(structures))


def _tell(points: Sequence[Measured], structures: Sequence[Data], budget: float, args: argparse.Namespace) -> None:
    """Print what was measured and what follows from it."""
    print(f"The largest structures have {int(structures[0].natoms)} to {int(structures[-1].natoms)} atoms.")
    rows = [["batch", "atoms", "peak, GiB", "s per step", "structures/s"]]
    for point in points:
        atoms = sum(int(structures[index % len(structures)].natoms) for index in range(point.batch))
        peak = f"{point.peak / _GIB:.2f}" if math.isfinite(point.peak) else "too much"
        rate = point.batch / point.seconds
        rows.append([str(point.batch), str(atoms), peak, f"{point.seconds:.3g}", f"{rate:.3g}"])
    print("\n".join(aligned(rows)))
    best = largest_within(points, budget)
    limit = f"{budget / _GIB:.2f} GiB, {args.margin:.0%} being left free"
    if best == 0:
        raise ValueError(
            f"not even one of the largest structures fits into {limit}; set activation_checkpoint or a smaller "
            "precision (optim.autocast: bf16), or train a smaller model"
        )
    line = line_through(points)
    if len(points) > 1:
        print(f"About {line.fixed / _GIB:.2f} GiB and {line.per_structure / _GIB:.3f} GiB per structure.")
    more = f"; larger ones were not tried (--most {args.most})" if best == args.most else ""
    print(f"optim.batch_size: {best}   # within {limit}{more}")
