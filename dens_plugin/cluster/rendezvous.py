"""Where the ranks of a job meet: at a port that the first rank has, told to the others in a file.

A port that is guessed may be taken, and then the job fails, or its ranks join those of the job that has it: submitit
guesses from the job's id, among the ports that systems also give to connections, and prefers a ``MASTER_PORT`` of the
shell that submitted, which is the same for all jobs. So the first rank has the system choose, listens from then on, and
writes the number into the folder of logs, which all nodes share.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from submitit import JobEnvironment
from submitit.helpers import TorchDistributedEnvironment
from torch.distributed import TCPStore

_PATIENCE = 600.0  # seconds; a shared file system may take one minute to show a new file, a busy node more to start
_POLL = 0.2


@contextlib.contextmanager
def meeting(*, patience: float = _PATIENCE) -> Iterator[None]:
    """Within the context, torch's environment variables say which rank this is and where the first one listens.

    ``torch.distributed.init_process_group`` takes over the store that listens: torch has one server per port and
    process.

    Args:
        patience: seconds to wait for the first rank.

    Raises:
        TimeoutError: if the first rank does not say where it listens.
    """
    job = JobEnvironment()
    start = os.environ.get("SLURM_RESTART_COUNT", "0")  # what an earlier start wrote is not for this one
    file = job.paths.folder / f"{job.job_id}_start{start}.port"
    if job.global_rank:
        port, store = _read(file, patience), None
    else:
        store = TCPStore(job.hostnames[0], 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        port = store.port
        _write(file, port)
    os.environ["MASTER_PORT"] = str(port)
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    try:
        yield
    finally:
        if store is not None:
            file.unlink(missing_ok=True)


def _write(file: Path, port: int) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text(str(port))
    draft.replace(file)  # seen whole or not at all


def _read(file: Path, patience: float) -> int:
    end = time.monotonic() + patience
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError(
                f"the first rank did not say within {patience:g} s where it listens, in '{file}'; is the run "
                "folder one that all nodes share?"
            )
        time.sleep(_POLL)
    return int(file.read_text())
