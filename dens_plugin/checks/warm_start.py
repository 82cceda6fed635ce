"""The block ``task.warm_start``: which weights to start from, and which heads not to take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.settings import reject_unknown


class WarmStart(NamedTuple):
    """Weights to start from.

    Attributes:
        path: of a checkpoint.
        new_heads: names of ``model.heads`` that are drawn anew, whether the checkpoint has them or not.
    """

    path: Path
    new_heads: tuple[str, ...] = ()


def warm_start_of(value: Any) -> WarmStart:
    """What ``task.warm_start`` says: a path, or a block of ``path`` and ``new_heads``.

    Raises:
        ValueError: for anything else.
    """
    where = "task.warm_start"
    if isinstance(value, (str, Path)) and str(value):
        return WarmStart(Path(value))
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a checkpoint's path, or a block of path and new_heads, got {value!r}")
    reject_unknown(value, WarmStart._fields, where)
    path, heads = value.get("path"), value.get("new_heads") or ()
    if not (isinstance(path, (str, Path)) and str(path)):
        raise ValueError(f"{where}.path must be the path of a checkpoint, got {path!r}")
    if not isinstance(heads, (list, tuple)) or not all(isinstance(name, str) for name in heads):
        raise ValueError(f"{where}.new_heads must be a list of names of heads, as [energy, forces], got {heads!r}")
    return WarmStart(Path(path), tuple(heads))
