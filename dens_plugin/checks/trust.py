"""Files of weights that a config names, looked at before fairchem reads them: a pickle may run any code."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dens_plugin.compat import read_tensors

_SUFFIXES = (".pt", ".pth", ".ckpt")


def require_plain_files(config: Mapping[str, Any]) -> None:
    """Read every file of weights that a config names, of whatever purpose, without letting it run code.

    These are normalisers, element references, scale factors, a model to fine-tune, and a warm start.

    Raises:
        ValueError: for a file that holds more than tensors and settings, with its key.
    """
    for key, value in _settings(config, ""):
        if isinstance(value, str) and value.endswith(_SUFFIXES) and Path(value).is_file():
            try:
                read_tensors(value, mmap=zipfile.is_zipfile(value))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error


def _settings(block: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(block, Mapping):
        entries = list(block.items())
    elif isinstance(block, (list, tuple)):
        entries = list(enumerate(block))
    else:
        yield where, block
        return
    for name, value in entries:
        yield from _settings(value, f"{where}.{name}" if where else str(name))
