"""fairchem's own command with this package loaded, after a look at the config."""

from __future__ import annotations

import argparse
import builtins
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from fairchem.core import _cli
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, setup_imports, setup_logging
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dens_plugin import compat
from dens_plugin.checks.config import require_meant
from dens_plugin.checks.model import require_known_model
from dens_plugin.checks.objective import objective_from_config
from dens_plugin.checks.optim import require_normalizers, require_optim
from dens_plugin.checks.preflight import require_distinct, require_files
from dens_plugin.data.oc22_references import require_references
from dens_plugin.relaxation.run import require_relaxable
from dens_plugin.settings import suggestion
from dens_plugin.training.steps import LOADER_WORKERS
from dens_plugin.training.trainer import DeNSTrainer

_OUR_TRAINERS = ("dens", "denoising_forces", f"dens_plugin.{DeNSTrainer.__name__}")
_TELLING = (ValueError, OSError, ImportError, FloatingPointError)  # errors of input rather than of a neighbour's end
_SPLITS = ("train", "val", "test")
# Splits that a mode does not look at, and that need not be opened for it: LMDB opens a file once per process.
_UNUSED = {"validate": ("test", "relax"), "predict": ("val", "relax"), "run-relaxations": ("val", "test")}


def launch(mode: str, arguments: Sequence[str]) -> None:
    """Run one of fairchem's modes with fairchem's options.

    Raises:
        FileNotFoundError: for a path in the options or the config that does not exist.
        ValueError: for a config that cannot be meant, before anything is started.
    """
    compat.prepare_host()
    setup_logging()  # before anything logs: the first message would otherwise choose another format
    parser = flags.get_parser()
    parser.prog = f"dens {mode}"
    parser.error = _refuse
    args, overrides = parser.parse_known_args([*arguments, "--mode", mode])
    require_overrides(overrides, parser)
    if args.checkpoint is None and mode != "train":
        raise ValueError(f"mode '{mode}' needs --checkpoint, the .pt file of a trained model")
    if args.checkpoint is not None:
        # A broken file is better met here than after everything else.
        compat.load_checkpoint(args.checkpoint, on_demand=True)
    overrides = [*overrides, *(f"--dataset.{split}=None" for split in _UNUSED.get(mode, ()))]
    config = build_config(args, overrides)
    require_sound(config)
    if mode == "run-relaxations":
        require_relaxable(config)
    if args.num_gpus > 1 and not args.submit and LOADER_WORKERS not in config["optim"]:
        # Needed by fairchem when it had data sets pickled; now every rank opens its own.
        overrides = [*overrides, f"--optim.{LOADER_WORKERS}={config['optim'].get('num_workers', 0)}"]
    try:
        _cli.main(args, overrides)
    except ChildFailedError as failures:
        raise error_of_ranks(failures) from None


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


def require_sound(config: Mapping[str, Any]) -> None:
    """Look at what needs no model and no data, in this process: errors of workers are hard to read.

    Raises:
        FileNotFoundError: for a path in the config that does not exist.
        ValueError: for a config that cannot be meant.
    """
    missing = [key for key in ("dataset", "model", "optim") if key not in config]
    if missing:
        raise ValueError(f"the config has no `{missing[0]}` block; see configs/experiment for examples")
    setup_imports(config)
    require_meant(config)
    if config.get("trainer") in _OUR_TRAINERS:
        require_optim(config["optim"])
        objective_from_config(config)
    require_known_model(config["model"])
    datasets = dict(_datasets(config["dataset"]))
    for split, dataset in datasets.items():
        require_normalizers(dataset.get("transforms"), f"dataset.{split}.transforms")
        require_files(dataset, split)
    require_distinct(datasets)
    if config.get("trainer") in _OUR_TRAINERS:
        require_references(datasets)
    if (config.get("task") or {}).get("warm_start"):
        compat.load_checkpoint(config["task"]["warm_start"], on_demand=True)


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}; `--help` lists all options")


def require_overrides(overrides: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """What fairchem did not know must be an override, ``--block.key=value``, which it splits without a look."""
    options = [option for action in parser._actions for option in action.option_strings]
    for text in overrides:
        if not re.fullmatch(r"--[\w.-]+=[^=]*", text):
            hint = suggestion(text, options) if text.startswith("--") else "options start with --"
            raise ValueError(f"unknown option '{text}'; {hint} (settings of the config are --block.key=value)")


def _datasets(block: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The splits of a config's ``dataset``, a mapping or, in older configs, a list."""
    splits = dict(zip(_SPLITS, block, strict=False)) if isinstance(block, list) else block
    return [(name, splits[name]) for name in _SPLITS if splits.get(name)]
