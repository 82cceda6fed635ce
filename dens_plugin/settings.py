"""Reading settings that a person typed: unknown keys and wrong types become one clear error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def reject_unknown(keys: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise ValueError for the first of ``keys`` that is not among ``allowed``, with the nearest of them."""
    allowed = list(allowed)
    for key in keys:
        if key not in allowed:
            raise ValueError(f"unknown key '{key}' in {where}; {suggestion(str(key), allowed)}")


def suggestion(word: str, options: Iterable[str]) -> str:
    """'did you mean X?' where something is near, else the list of options."""
    options = sorted(options)
    parts = [option for option in options if word in option.split("_")]  # lr for lr_initial
    near = difflib.get_close_matches(word, options, n=1) or (parts if len(parts) == 1 else [])
    return f"did you mean '{near[0]}'?" if near else f"allowed are {', '.join(options)}"


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A copy of a block of settings; raises ValueError where something else stands there."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a block of `key: value` lines, got {value!r}")
    return dict(value)


def number(value: Any, where: str) -> float:
    """A number, also one that YAML took for text, as it does with ``1e-1``."""
    if isinstance(value, bool):
        raise ValueError(f"{where} must be a number, got {value}")
    try:
        return value if isinstance(value, (int, float)) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be a number, got {value!r}") from None


def read_block(path: Path, where: str) -> dict[str, Any]:
    """The settings in a YAML file that exists; raises ValueError that names it where there are none."""
    try:
        return mapping(yaml.safe_load(path.read_text()) or {}, where)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is no YAML: {error}") from error


def with_numbers(value: Any) -> Any:
    """A copy of a block of settings in which numbers that YAML took for text, as it does with ``1e-1``, are numbers."""
    if isinstance(value, Mapping):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


_SWITCHES = {"true": True, "false": False}


def switch(value: Any, where: str) -> bool:
    """True or False, or a word for it: fairchem's command line leaves ``true`` and ``false`` as text."""
    if isinstance(value, str) and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, got {value!r}")
    return value
