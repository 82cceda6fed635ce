"""What can be said of a disk when something could not be written to it."""

from __future__ import annotations

import shutil
from pathlib import Path

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def trouble(path: Path, error: BaseException) -> str:
    """An error of writing in words, with how much is free: torch calls a full disk an unexpected position."""
    try:
        free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    except OSError:
        return f"{_reason(error)}; its disk cannot be reached"
    return f"{_reason(error)}; {_size(free)} free on its disk"


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = (str(error) or type(error).__name__).splitlines()[0]
    return "the file could not be written to its end" if "unexpected pos" in first else first


def _size(free: int) -> str:
    for unit, size in _UNITS:
        if free >= size:
            return f"{free / size:.3g} {unit}"
    return f"{free} bytes"
