"""`dens train|validate|predict|relax`: files and options are looked at before torch is imported."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dens_plugin.checks.files import config_files
from dens_plugin.checks.options import as_python, require_options
from dens_plugin.commands.options import options_parser
from dens_plugin.config_files import find_config
from dens_plugin.data.output import require_folder
from dens_plugin.log_lines import set_up_logging

_SPLIT_OF_MODE = {"train": ("train", "val"), "validate": ("val",), "predict": ("test",), "run-relaxations": ("relax",)}


PRETRAIN = "pretrain"  # the command and its objective


class Mode(NamedTuple):
    """A mode of fairchem.

    Attributes:
        name: fairchem's.
        help: a line.
    """

    name: str
    help: str


MODES = {
    "train": Mode("train", "train a model"),
    PRETRAIN: Mode("train", "train on structures without labels, by the objective `pretrain`"),
    "validate": Mode("validate", "errors of a checkpoint on the validation set"),
    "predict": Mode("predict", "predictions of a checkpoint for the test set, float32"),
    "relax": Mode("run-relaxations", "relax the structures of a data set"),
}


def run_mode(command: str, arguments: Sequence[str]) -> None:
    """Run one of fairchem's modes with fairchem's options.

    Raises:
        FileNotFoundError: for a config, an included file, a checkpoint or data that do not exist.
        ValueError: for an option or a config that makes no sense.
    """
    mode = MODES[command].name
    parser = options_parser(command)
    args, overrides = parser.parse_known_args([*arguments, "--mode", mode])
    require_options(args, overrides, parser)
    overrides = [as_python(override) for override in overrides]
    args.config_yml = find_config(args.config_yml)
    _require_files(args, overrides, mode)
    if command == PRETRAIN:
        _require_pretraining(args.config_yml, overrides)
    _choose_device(args)
    if args.checkpoint and mode != "train" and args.run_dir == parser.get_default("run_dir"):
        args.run_dir = str(run_folder_of(args.checkpoint) or args.run_dir)
    if not args.debug:
        require_folder(Path(args.run_dir), "--run-dir")
    set_up_logging()
    importlib.import_module("dens_plugin.launch").launch(args, overrides)


def run_folder_of(checkpoint: str) -> Path | None:
    """The RUN_DIR of a checkpoint at ``RUN_DIR/checkpoints/ID/NAME.pt``; None where it lies elsewhere."""
    folder = Path(checkpoint).absolute().parent.parent
    return folder.parent if folder.name == "checkpoints" else None


def _require_files(args: argparse.Namespace, overrides: Sequence[str], mode: str) -> None:
    """Raise for files that do not exist; what is in them is looked at later."""
    if args.checkpoint is None and mode != "train":
        raise ValueError(f"mode '{mode}' needs --checkpoint, the .pt file of a trained model")
    if args.checkpoint is not None and not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint at '{args.checkpoint}'; give the path of a .pt file")
    given = [text.partition("=") for text in overrides]
    changed = {key.removeprefix("--"): value for key, _, value in given}
    for split, sources in _sources(args.config_yml).items():
        if split in _SPLIT_OF_MODE[mode] and not any(_replaces(key, split) for key in changed):
            for source in sources:
                _require_source(split, str(source))
    for split in _SPLIT_OF_MODE[mode]:
        given_source = changed.get(f"dataset.{split}.src", "None")
        if not given_source.startswith(("[", "(")) and given_source != "None":
            _require_source(split, given_source)


def _require_pretraining(path: Path, overrides: Sequence[str]) -> None:
    """Raise ValueError if a config, its included files or an option say that something else is to be trained."""
    given = [text.partition("=") for text in overrides]
    names = [value for key, _, value in given if key == "--task.objective.name"]
    for file in config_files(path):  # its own settings first
        task = file.settings.get("task")
        objective = task.get("objective") if isinstance(task, dict) else None
        names += [objective["name"]] if isinstance(objective, dict) and "name" in objective else []
    if not names or names[0] != PRETRAIN:
        found = f"is `{names[0]}`" if names else "is missing"
        raise ValueError(
            f"`dens pretrain` trains by the objective `pretrain`, and task.objective.name in '{path}' {found}; include "
            "objective/pretrain.yml, or call `dens train`"
        )


def _sources(path: Path) -> dict[str, list[str]]:
    """Split -> paths of its data, ``dataset.<split>.src``, as a config and its included files give them."""
    sources: dict[str, list[str]] = {}
    for file in config_files(path):
        block = file.settings.get("dataset")
        for split, dataset in block.items() if isinstance(block, dict) else ():
            source = dataset.get("src") if isinstance(dataset, dict) else None
            paths = [source] if isinstance(source, str) else source
            is_readable = isinstance(paths, list) and all(isinstance(one, str) for one in paths)
            if paths:
                sources.setdefault(split, paths if is_readable else [])  # `require_sound` tells what is no path
    return sources


def _replaces(key: str, split: str) -> bool:
    """Whether an override decides where a split's data are."""
    return key in ("dataset", f"dataset.{split}", f"dataset.{split}.src")


def _require_source(split: str, source: str) -> None:
    if not Path(source).exists():
        raise FileNotFoundError(f"dataset.{split}.src: there is no '{source}'; set it to a data set's path")


def _choose_device(args: argparse.Namespace) -> None:
    if args.device == "cuda" and args.cpu:
        raise ValueError("--cpu and --device cuda contradict each other; leave one of them out")
    args.cpu = args.cpu or args.device == "cpu"
