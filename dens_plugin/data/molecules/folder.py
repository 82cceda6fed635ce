"""The folder of a data set, which is made beside its place and gets its name when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dens_plugin.data.lmdb_file import PART
from dens_plugin.data.output import require_makeable


def require_free(out: Path) -> None:
    """Check that a folder can be made and nothing of anybody's is in its way.

    Raises:
        ValueError: If it exists with something in it, is the one the user is in, cannot be made, or the folder that it
            is made as exists.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists: give another OUT, or delete it first.")
    if out.exists() and out.samefile(Path.cwd()):
        raise ValueError(f"OUT is the folder you are in ({out}), which would be replaced: give a new one.")
    if _unfinished(out).exists():
        raise ValueError(
            f"{_unfinished(out)} exists, perhaps of a conversion that was killed: delete it if nothing in it is yours, "
            "or give another OUT."
        )
    require_makeable(out)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Within the context, a new folder to fill; it becomes ``out`` at the end, and goes if that is not reached."""
    folder = _unfinished(out)
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.replace(out)
    except BaseException:  # an interruption too
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unfinished(out: Path) -> Path:
    return out.absolute().with_name(out.absolute().name + PART)
