"""Options of fairchem's command line: numbers that end in a traceback, and overrides of settings."""

from __future__ import annotations

import argparse
import ast
import contextlib
import re
from collections.abc import Sequence

import yaml

from dens_plugin.settings import suggestion

_WORDS = {"true": "True", "false": "False", "null": "None"}
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
        if not is_override(text):
            hint = suggestion(text, options) if text.startswith("--") else "options start with --"
            raise ValueError(f"unknown option '{text}'; {hint} (settings of the config are --block.key=value)")


def is_override(text: str) -> bool:
    """Whether a word of the command line changes a setting: ``--block.key=value``."""
    return re.fullmatch(r"--[\w.-]+=[^=]*", text) is not None


def as_python(override: str) -> str:
    """``--block.key=value`` with a value as in YAML in Python's words, which fairchem reads.

    Words for true, false and null are changed, and lists and blocks that are none of Python's.
    """
    key, sign, value = override.partition("=")
    if value.lstrip().startswith(("[", "{")) and not _is_python(value):
        with contextlib.suppress(yaml.YAMLError):  # text, as the pattern [ab]*.extxyz
            read = repr(yaml.safe_load(value))
            return f"{key}{sign}{read}" if _is_python(read) else override
    return f"{key}{sign}{_WORDS.get(value.lower(), value)}"


def _is_python(value: str) -> bool:
    """Whether fairchem takes a value for more than text."""
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return False
    return True
