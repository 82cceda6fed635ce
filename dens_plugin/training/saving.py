"""Checkpoint files that survive a crash: written beside, synced, renamed; the last few kept; checked before use.

Names: the newest is fairchem's ``checkpoint.pt``, the one before it ``checkpoint.1.pt``, and so on.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from dens_plugin.compat import damage

NEWEST = "checkpoint.pt"


def commit(written: Path, path: Path, *, keep: int) -> None:
    """Make a file that was just written the newest of its name, and earlier ones its predecessors.

    The data reaches the disk before the name does, so that at any moment the newest of the names that exist is whole:
    a crash between two renames leaves a gap in the numbers and no half-written file.

    Args:
        written: the complete file, in the folder of ``path``.
        path: the name that it gets.
        keep: how many files of this name to keep, itself included.
    """
    _sync(written)
    for age in range(keep - 1, 0, -1):
        younger = predecessor(path, age - 1)
        if younger.exists():
            younger.replace(predecessor(path, age))
    written.replace(path)
    _sync(path.parent)


def predecessor(path: Path, age: int) -> Path:
    """The name of the file that was at ``path`` so many saves ago."""
    return path.with_suffix(f".{age}{path.suffix}") if age else path


def newest_whole(folder: str | Path) -> Path | None:
    """The newest checkpoint of a run that is whole, or None if the run has none.

    Raises:
        ValueError: if there are checkpoints and none is whole.
    """
    candidates = sorted(Path(folder).glob("checkpoint*.pt"), key=_age)
    candidates = [path for path in candidates if _age(path) >= 0]
    for path in candidates:
        problem = damage(path, own=True) if path.stat().st_size else "empty"
        if problem is None:
            return path
        logging.warning(f"The checkpoint '{path}' is damaged ({problem}); looking for the one before it.")
    if candidates:
        raise ValueError(
            f"none of the {len(candidates)} checkpoints in '{folder}' is whole; move them away to start afresh"
        )
    return None


def whole_or_before(path: str | Path) -> Path:
    """The file itself; for the newest checkpoint of a run, if that is damaged, the newest whole one before it.

    Raises:
        ValueError: if none of several is whole.
    """
    path = Path(path)
    has_older = path.name == NEWEST and predecessor(path, 1).exists()
    found = newest_whole(path.parent) if has_older else None
    return path if found is None else found


def keep_checkpoints(optim: dict[str, Any]) -> int:
    """The number of ``optim.keep_checkpoints``; raises ValueError for anything but a whole number."""
    keep = optim.get("keep_checkpoints", 2)
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise ValueError(f"optim.keep_checkpoints must be a whole number of at least 1, got {keep!r}")
    return keep


def _age(path: Path) -> int:
    """0 for the newest, 1 for the one before; -1 for a file of another purpose."""
    number = path.name.removeprefix("checkpoint").removesuffix(".pt").removeprefix(".")
    if path.name == NEWEST:
        return 0
    return int(number) if number.isdigit() else -1


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
