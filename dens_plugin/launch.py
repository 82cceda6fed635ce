"""fairchem's own command with this package loaded, after a look at the config."""

from __future__ import annotations

import argparse
import builtins
import logging
from collections.abc import Sequence

import torch
from fairchem.core import _cli
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import dens_plugin.training.trainer  # noqa: F401
from dens_plugin import compat
from dens_plugin.checks.config import require_sound
from dens_plugin.checks.files import config_files
from dens_plugin.checks.merged import merged_config
from dens_plugin.checks.names import require_login
from dens_plugin.checks.schema import ignored_options
from dens_plugin.cluster.rank import run_rank
from dens_plugin.log_lines import set_up_logging
from dens_plugin.relaxation.run import require_relaxable
from dens_plugin.training.checkpoints import whole_or_before
from dens_plugin.training.earlier_runs import EarlierRun, earlier_runs, unfinished
from dens_plugin.training.loading import LOADER_WORKERS

_TELLING = (ValueError, OSError, ImportError, FloatingPointError)  # errors of input rather than of a neighbour's end
# Splits that a mode does not look at, and that need not be opened for it: LMDB opens a file once per process.
_UNUSED = {"validate": ("test", "relax"), "predict": ("val", "relax"), "run-relaxations": ("val", "test")}


def launch(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run one of fairchem's modes.

    Args:
        args: fairchem's options, with their mode.
        overrides: changes of the config, ``--block.key=value``.

    Raises:
        FileNotFoundError: for a path in the options or the config that does not exist.
        ValueError: for a config that makes no sense, or a GPU that is not there, before anything is started.
    """
    compat.prepare_host()
    set_up_logging()  # before anything logs: the first message would otherwise choose another format
    files = config_files(args.config_yml)
    for sentence in ignored_options(files):
        logging.warning(sentence)
    overrides = [*overrides, *(f"--dataset.{split}=None" for split in _UNUSED.get(args.mode, ()))]
    config = merged_config(args, overrides)
    require_sound(config, files)
    require_login(config)
    if args.mode == "train":
        _look_at_earlier_runs(args, config["optim"]["max_epochs"])
    if args.checkpoint is not None:
        # A broken file is better met here than after everything else.
        args.checkpoint = str(whole_or_before(args.checkpoint))
        compat.require_weights(compat.load_checkpoint(args.checkpoint, on_demand=True), args.checkpoint)
    if args.mode == "run-relaxations":
        require_relaxable(config)
    if args.num_gpus > 1 and not args.submit and LOADER_WORKERS not in config["optim"]:
        # Needed by fairchem when it had data sets pickled; now every rank opens its own.
        overrides = [*overrides, f"--optim.{LOADER_WORKERS}={config['optim'].get('num_workers', 0)}"]
    if args.amp and args.cpu:
        logging.warning("--amp is for a GPU and changes nothing on a CPU; `optim.autocast: bf16` does.")
    if not (args.cpu or args.submit or torch.cuda.is_available()):
        raise ValueError("no GPU here: add --cpu")
    _cli.runner_wrapper, _cli.build_config = run_rank, merged_config
    try:
        _cli.main(args, overrides)
    except ChildFailedError as failures:
        raise error_of_ranks(failures) from None


def _look_at_earlier_runs(args: argparse.Namespace, max_epochs: float) -> None:
    """Choose the run that ``--resume`` means, or say that there is one to go on with.

    Raises:
        ValueError: if there is none, or another run was named as well.
    """
    is_named = args.checkpoint is not None or args.timestamp_id is not None
    wanted = getattr(args, "resume", False)
    if is_named and wanted:
        raise ValueError("--resume looks for a run itself; leave out --checkpoint and --timestamp-id, or --resume")
    if is_named:
        return
    run = unfinished(args.run_dir, args.identifier, max_epochs)
    name = f"'{args.identifier}'" if args.identifier else "without a name"
    if wanted and run is None:
        finished = next(earlier_runs(args.run_dir, args.identifier), None)
        raise ValueError(
            f"there is no unfinished run {name} in '{args.run_dir}/checkpoints'; leave out --resume to start one, or "
            + ("give its --identifier and --run-dir" if finished is None else _raise_epochs(finished, max_epochs))
        )
    if run is None:
        return
    told = f"the run {run.name} (step {run.step}, epoch {run.epoch:.4g} of {max_epochs})"
    if wanted:
        logging.info(f"Going on with {told}.")
        args.timestamp_id = run.name
    else:
        logging.warning(f"This is a new run, and {told} is unfinished: add --resume to go on with that one instead.")


def _raise_epochs(run: EarlierRun, max_epochs: float) -> str:
    return f"raise optim.max_epochs above {max_epochs:g} to go on with {run.name}, which is finished at step {run.step}"


def error_of_ranks(failures: ChildFailedError) -> Exception:
    """The error that ended a local launch of several ranks, as the rank itself raised it where it is Python's own.

    What other ranks tell is mostly that a neighbour has gone; of several errors the first that says more is taken.
    """
    told = [
        (rank, _told(failure))
        for rank, failure in sorted(failures.failures.items(), key=lambda item: item[1].timestamp)
    ]
    rank, (kind, message) = next((item for item in told if issubclass(item[1][0], _TELLING)), told[0])
    return kind(f"{message} (rank {rank})")


def _told(failure: ProcessFailure) -> tuple[type[Exception], str]:
    """Type and message of a rank's error; RuntimeError for what has no type here, or was no error but a signal."""
    text = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    name, _, message = text.partition(": ")
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind, message
    return RuntimeError, text
