"""The options of `dens train|validate|predict|relax`: fairchem's, and ours; read without importing torch."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
from pathlib import Path
from typing import Any, NoReturn

DEVICES = ("cpu", "cuda")
_ALWAYS_GIVEN = {"mode"}  # by the name of the command


def options_parser(command: str) -> argparse.ArgumentParser:
    """A parser of fairchem's options, with ``--device``."""
    parser = _fairchem_flags().get_parser()
    parser.prog = f"dens {command}"
    parser.description = "Settings of the config can be changed by --block.key=value, as in --optim.max_epochs=5."
    parser.error = _refuse
    for action in parser._actions:
        if action.dest in _ALWAYS_GIVEN:
            action.help = argparse.SUPPRESS
        if action.dest == "config_yml":
            action.help = "a config file, or the name of one that `dens configs` lists"
    parser.add_argument("--device", choices=DEVICES, help="where to compute; --device cpu is the same as --cpu")
    if command == "train":
        parser.add_argument(
            "--resume",
            action="store_true",
            help="go on with the newest unfinished run of this --identifier in --run-dir",
        )
    return parser


def _fairchem_flags() -> Any:
    """The options from fairchem's file, loaded by its path: importing its package takes seconds."""
    fairchem = importlib.util.find_spec("fairchem")
    for folder in (fairchem.submodule_search_locations if fairchem else None) or ():
        path = Path(folder) / "core" / "common" / "flags.py"
        if path.is_file():
            return runpy.run_path(str(path))["flags"]
    raise ImportError("fairchem-core is not installed: pip install 'fairchem-core>=1.10,<2'")


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}; `--help` lists all options")
