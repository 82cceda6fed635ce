"""One process to a run's folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from fairchem.core.common import distutils

FILE_NAME = "run.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def locked(folder: Path, device: torch.device) -> Iterator[None]:
    """Within the context, no other process trains in this folder; one rank holds the lock for all.

    The lock is the system's (POSIX), which network file systems know too, and no worker of a loader keeps it.

    Args:
        folder: the run's.
        device: of this rank, by which it tells the others.

    Raises:
        ValueError: on all ranks, if another process has it, with its host, number and start.
    """
    file, refusal = _taken(folder) if distutils.is_master() and folder.is_dir() else (None, None)
    told = [refusal]
    distutils.broadcast_object_list(told, src=0, device=device)
    if told[0] is not None:
        raise ValueError(told[0])
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                file.truncate(0)
            file.close()


def _taken(folder: Path) -> tuple[IO[str] | None, str | None]:
    """The open file with the lock, or why there is none: the words for a refusal, or nothing where none is needed."""
    path = folder / FILE_NAME
    try:
        file = open(path, "a+")  # noqa: SIM115  (it is open for as long as the lock is kept)
    except OSError as error:
        logging.warning(f"'{path}' cannot be written ({error.strerror}): nothing keeps two runs apart in that folder.")
        return None, None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        if error.errno not in _TAKEN:
            logging.warning(f"The file system of '{folder}' has no locks: nothing keeps two runs apart there.")
            return None, None
        return None, (
            f"another run trains in '{folder}' ({owner}), and two would mix their checkpoints: wait for it, end it, or "
            "start this one under another --identifier or --timestamp-id"
        )
    with contextlib.suppress(OSError):  # a full disk: the lock is there without its words
        file.truncate(0)
        file.write(_self())
        file.flush()
    return file, None


def _self() -> str:
    job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    now = datetime.datetime.now().astimezone()
    return f"process {os.getpid()} on {socket.gethostname()}{job}, since {now:%Y-%m-%d %H:%M:%S}"
