"""Whether a folder can be made, asked before the hours of work that are to fill it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def require_folder(out: Path, option: str) -> None:
    """Check that a path is a folder or can become one; raises ValueError that names the ``option`` that gave it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file; give {option} a folder")
    try:
        require_makeable(out)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def require_makeable(out: Path) -> None:
    """Check that a folder and those above it can be made.

    A temporary folder is made in the nearest one that exists, and removed. Permissions would not tell: the superuser
    is promised everything, a read-only disk and ``/proc`` refuse nevertheless.

    Args:
        out: The folder to make; what lies there already does not matter.

    Raises:
        ValueError: If it cannot be made, with the folder that is in the way.
    """
    path = out.absolute()
    folder = path if path.is_dir() else next(parent for parent in path.parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryDirectory(prefix=".dens-", dir=folder):
            pass
    except NotADirectoryError as error:
        raise ValueError(f"{out} cannot be made because {folder} is not a folder: give another one.") from error
    except OSError as error:
        raise ValueError(
            f"{out} cannot be made because nothing can be written to the folder {folder} ({error.strerror}): "
            "give a folder that you may write to, or change its permissions."
        ) from error
