"""Reading settings that a person typed: unknown keys and wrong types become one clear error."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

SETTING = "setting"  # key of a dataclass field's metadata: False for a field that no config sets

T = TypeVar("T")


def reject_unknown(keys: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise ValueError for the first of ``keys`` that is not among ``allowed``, with the nearest of them."""
    allowed = list(allowed)
    for key in keys:
        if key not in allowed:
            hint = suggestion(str(key), allowed) if allowed else "nothing can be set there"
            raise ValueError(f"unknown key '{key}' in {where}; {hint}")


def suggestion(word: str, options: Iterable[str]) -> str:
    """'did you mean X?' where something is near, else the list of options."""
    options = sorted(options)
    parts = [option for option in options if word in option.split("_")]  # lr for lr_initial
    near = difflib.get_close_matches(word, options, n=1) or (parts if len(parts) == 1 else [])
    return f"did you mean '{near[0]}'?" if near else f"allowed are {', '.join(options)}"


def require_one_of(value: Any, options: Iterable[str], where: str) -> None:
    """Raise ValueError for a value that is not among some words, with the most similar of them."""
    options = list(options)
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"unknown {where} '{value}'; {suggestion(str(value), options)}")


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


def count(value: Any, where: str, *, least: int) -> int:
    """A whole number of at least ``least``; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where} must be a whole number of at least {least}, got {value!r}")
    return value


def read_block(path: Path, where: str) -> dict[str, Any]:
    """The settings in a YAML file that exists; raises ValueError that names it where there are none."""
    try:
        return mapping(yaml.safe_load(path.read_text()) or {}, where)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is no YAML: {error}") from error


def with_numbers(value: Any) -> Any:
    """A copy of a block of settings in which text that `number` reads, as YAML has for ``1e-1``, is a number."""
    if isinstance(value, Mapping):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


_SWITCHES = {"true": True, "false": False}


def switch(value: Any, where: str) -> bool:
    """True or False, or a word for it: fairchem's command line leaves ``true`` and ``false`` as text."""
    if isinstance(value, str) and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, got {value!r}")
    return value


def read_fields(cls: type[T], block: Mapping[str, Any], where: str) -> T:
    """An instance of a dataclass from a block of settings: its fields are the keys, their types say what is read.

    Read are numbers (also such as YAML takes for text), ``true`` and ``false``, words of a `Literal`, ``null`` where
    the type allows None, and blocks for fields that are dataclasses themselves. A number also stands for a dataclass
    of one field. Fields with ``metadata={SETTING: False}`` are no settings.

    Raises:
        ValueError: for an unknown, missing or impossible value, naming the key.
    """
    types = get_type_hints(cls)
    known = {entry.name: entry for entry in fields(cls) if entry.metadata.get(SETTING, True)}  # type: ignore[arg-type]
    reject_unknown(block, known, where)
    missing = [name for name, entry in known.items() if name not in block and not _has_default(entry)]
    if missing:
        raise ValueError(f"{where} lacks {' and '.join(missing)}")
    return cls(**{name: _read(value, types[name], f"{where}.{name}") for name, value in block.items()})


def _has_default(entry: Field) -> bool:
    return entry.default is not MISSING or entry.default_factory is not MISSING


def _read(value: Any, kind: Any, where: str) -> Any:
    """A value of a type: one that `read_fields` describes."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in options:
        return None
    records = [option for option in options if is_dataclass(option)]
    if records:
        return _read_record(value, records, where)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{where} must be {' or '.join(map(repr, get_args(kind)))}, got {value!r}")
        return value
    if bool in options:
        return switch(value, where)
    if float in options:
        return number(value, where)
    if int in options:
        return _whole(value, where)
    return value


def _read_record(value: Any, records: list[Any], where: str) -> Any:
    """A dataclass: by a number the one that has a single field, by a block the one with the fields that it names."""
    by_number = [record for record in records if len(fields(record)) == 1]
    if by_number and not isinstance(value, Mapping):
        return by_number[0](number(value, where))
    by_block = next(record for record in records if record not in by_number)
    return read_fields(by_block, mapping(value, where), where)


def _whole(value: Any, where: str) -> int:
    found = number(value, where)
    if not math.isfinite(found) or found != int(found):
        raise ValueError(f"{where} must be a whole number, got {value!r}")
    return int(found)
