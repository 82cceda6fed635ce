"""Local launches: what a rank says when it ends, and that it can end."""

from __future__ import annotations

import json
import multiprocessing

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.utils.data import DataLoader

from dens_plugin.launch import error_of_ranks
from dens_plugin.training.interruption import leave_to_trainer, workers_let_go


def failure(folder, rank, *, message=None, time=0, exitcode=1):
    """What torch knows of a rank that ended, by an error or by a signal."""
    file = folder / f"{rank}.json"
    if message is not None:
        told = {"message": message, "extraInfo": {"py_callstack": "Traceback", "timestamp": time}}
        file.write_text(json.dumps({"message": told}))
    return ProcessFailure(local_rank=rank, pid=rank, exitcode=exitcode, error_file=str(file))


def test_tells_the_error_that_can_be_mended(tmp_path):
    """Its neighbour complains first, in the same second or before."""
    lost = failure(tmp_path, 0, message="RuntimeError: Connection closed by peer", time=5)
    cause = failure(tmp_path, 1, message="FileNotFoundError: there is no 'a: b'", time=5)
    error = error_of_ranks(ChildFailedError("run", {0: lost, 1: cause}))
    assert type(error) is FileNotFoundError
    assert str(error) == "there is no 'a: b' (rank 1)"


def test_tells_the_first_of_other_errors(tmp_path):
    late = failure(tmp_path, 0, message="KeyError: 'a'", time=9)
    killed = failure(tmp_path, 1, exitcode=-9)
    other = failure(tmp_path, 2, message="MyError: it broke", time=3)
    assert str(error_of_ranks(ChildFailedError("run", {1: killed}))).startswith("Signal 9 (SIGKILL)")
    error = error_of_ranks(ChildFailedError("run", {0: late, 1: killed, 2: other}))
    assert type(error) is RuntimeError
    assert str(error) == "MyError: it broke (rank 2)"


def test_an_error_keeps_no_worker():
    """A process that ends waits for its workers, which heed no signal: they have to be gone by then."""

    def loop():
        batches = iter(DataLoader([1, 2], num_workers=1, worker_init_fn=leave_to_trainer))
        next(batches)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"), workers_let_go():
        loop()
    assert not multiprocessing.active_children()
