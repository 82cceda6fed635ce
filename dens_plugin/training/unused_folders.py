"""The folders of a run that ended before it had anything to write, which fairchem makes before it looks at anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from fairchem.core.common import distutils

_FOLDERS = ("checkpoint_dir", "results_dir", "logs_dir")
_BEFORE_TRAINING = ("normalizers.pt", "element_references.pt")  # what fairchem writes beside the checkpoints
_OF_TENSORBOARD = "events.out.tfevents.*"


@contextlib.contextmanager
def removed_if_unused(folders: Mapping[str, str]) -> Iterator[None]:
    """Within the context, an error takes a run's folders with it, unless there is something of a run in them.

    Args:
        folders: fairchem's block ``cmd``, with the paths of checkpoints, results and logs.
    """
    try:
        yield
    except Exception:
        if distutils.is_master():
            _remove(*(Path(folders[name]) for name in _FOLDERS))
        raise


def _remove(checkpoints: Path, results: Path, logs: Path) -> None:
    if not checkpoints.is_dir() or any(path.name not in _BEFORE_TRAINING for path in checkpoints.iterdir()):
        return
    for path in (*checkpoints.iterdir(), *logs.glob(_OF_TENSORBOARD)):
        path.unlink()
    for folder in (checkpoints, results, logs):
        with contextlib.suppress(OSError):  # what else is in it stays
            folder.rmdir()
