"""Local launches: what a rank says when it ends, and that it can end."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.utils.data import DataLoader

from dens_plugin.launch import _look_at_earlier_runs, error_of_ranks
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


class TestResume:
    @staticmethod
    def leave(folder, name, *, epoch, identifier="mine", at=0, content=None):
        """A checkpoint as an earlier run left it."""
        (folder / "checkpoints" / name).mkdir(parents=True)
        path = folder / "checkpoints" / name / "checkpoint.pt"
        torch.save({"step": int(100 * epoch), "epoch": epoch, "config": {"cmd": {"identifier": identifier}}}, path)
        os.utime(path, (at, at))
        if content is not None:
            path.rename(path.with_name("checkpoint.1.pt"))
            path.write_bytes(content)
            os.utime(path, (at, at))

    @staticmethod
    def arguments(folder, **changes):
        plain = {"checkpoint": None, "timestamp_id": None, "run_dir": str(folder), "identifier": "mine", "resume": True}
        return argparse.Namespace(**(plain | changes))

    def test_goes_on_with_the_newest_unfinished_run_of_the_identifier(self, tmp_path):
        self.leave(tmp_path, "2026-01-01-mine", epoch=0.5, at=1)
        self.leave(tmp_path, "2026-01-02-mine", epoch=0.7, at=2)
        self.leave(tmp_path, "2026-01-03-mine", epoch=2.0, at=3)
        self.leave(tmp_path, "2026-01-04-not-mine", epoch=0.1, identifier="not-mine", at=4)
        args = self.arguments(tmp_path)
        _look_at_earlier_runs(args, 2)
        assert args.timestamp_id == "2026-01-02-mine"
        longer = self.arguments(tmp_path)
        _look_at_earlier_runs(longer, 3)
        assert longer.timestamp_id == "2026-01-03-mine"

    def test_a_folder_may_have_any_name(self, tmp_path):
        """As one that was chosen by --timestamp-id."""
        self.leave(tmp_path, "T", epoch=0.5)
        args = self.arguments(tmp_path)
        _look_at_earlier_runs(args, 2)
        assert args.timestamp_id == "T"

    def test_a_damaged_newest_checkpoint_does_not_hide_a_run(self, tmp_path):
        self.leave(tmp_path, "2026-01-01-mine", epoch=0.5, content=bytes(100))
        args = self.arguments(tmp_path)
        _look_at_earlier_runs(args, 2)
        assert args.timestamp_id == "2026-01-01-mine"

    def test_a_new_run_beside_an_unfinished_one_says_so(self, tmp_path, caplog):
        self.leave(tmp_path, "2026-01-01-mine", epoch=0.5)
        args = self.arguments(tmp_path, resume=False)
        _look_at_earlier_runs(args, 2)
        assert args.timestamp_id is None
        assert "the run 2026-01-01-mine (step 50, epoch 0.5 of 2) is unfinished: add --resume" in caplog.text

    def test_a_finished_run_is_named(self, tmp_path):
        self.leave(tmp_path, "2026-01-01-mine", epoch=2.0)
        with pytest.raises(
            ValueError, match=r"raise optim.max_epochs above 2 to go on with 2026-01-01-mine, which is f"
        ):
            _look_at_earlier_runs(self.arguments(tmp_path), 2)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"identifier": "other"}, r"no unfinished run 'other' in .*leave out --resume"),
            ({"checkpoint": "x.pt"}, r"leave out --checkpoint and --timestamp-id, or --resume"),
        ],
    )
    def test_what_it_cannot_mean(self, tmp_path, changes, message):
        self.leave(tmp_path, "2026-01-01-mine", epoch=0.5)
        with pytest.raises(ValueError, match=message):
            _look_at_earlier_runs(self.arguments(tmp_path, **changes), 2)
