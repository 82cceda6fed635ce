"""Reading settings that a person typed: unknown keys and wrong types become one clear error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def reject_unknown(keys: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise ValueError for the first of ``keys`` that is not among ``allowed``, with the nearest of them."""
    allowed = list(allowed)
    for key in keys:
        if key not in allowed:
            raise ValueError(f"unknown key '{key}' in {where}; {suggestion(str(key), allowed)}")


def suggestion(word: str, options: Iterable[str]) -> str:
    """'did you mean X?' where something is near, else the list of options."""
    options = sorted(options)
    near = difflib.get_close_matches(word, options, n=1)
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


def switch(value: Any, where: str) -> bool:
    """True or False, and nothing that merely looks like one of them."""
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, got {value!r}")
    return value
