"""Options of fairchem's command line: numbers that end in a traceback, and overrides of settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from dens_plugin.settings import suggestion

_LEAST = {"print_every": 1, "num_gpus": 1, "num_nodes": 1, "gp_gpus": 1, "seed": 0}
_HINTS = {"num_gpus": ": it is the number of processes, on a CPU too", "print_every": ": it is a number of steps"}


def require_options(args: argparse.Namespace, overrides: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Raise ValueError for an impossible number, or an option that is neither fairchem's nor an override."""
    for name, least in _LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {least}{_HINTS.get(name, '')}; got {value}")
    require_overrides(overrides, parser)


def require_overrides(overrides: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """What fairchem does not know must be an override, ``--block.key=value``; fairchem itself does not check that."""
    options = [option for action in parser._actions for option in action.option_strings]
    for text in overrides:
        if not re.fullmatch(r"--[\w.-]+=[^=]*", text):
            hint = suggestion(text, options) if text.startswith("--") else "options start with --"
            raise ValueError(f"unknown option '{text}'; {hint} (settings of the config are --block.key=value)")
