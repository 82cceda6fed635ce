"""Ranks of several jobs on one machine find their own."""

from __future__ import annotations

import itertools
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dens_plugin.cluster.rendezvous import meeting

RANKS = 2


def rank_of(job, rank, folder, starts=0):
    """The environment of one of the ranks of task 0 of an array, as Slurm and submitit make it."""
    slurm = {"ARRAY_JOB_ID": job, "ARRAY_TASK_ID": 0, "JOB_ID": job, "JOB_NUM_NODES": 1, "JOB_NODELIST": "127.0.0.1"}
    slurm |= {"NTASKS": RANKS, "PROCID": rank, "LOCALID": rank} | ({"RESTART_COUNT": starts} if starts else {})
    return {f"SLURM_{key}": str(value) for key, value in slurm.items()} | {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(folder),
    }


def rank_main(index, folder, starts):
    job, rank = divmod(index, RANKS)
    os.environ |= rank_of(job, rank, folder, starts)
    with meeting(patience=30):
        dist.init_process_group("gloo", timeout=timedelta(seconds=30))
        met = [torch.zeros(2, dtype=torch.long) for _ in range(RANKS)]
        dist.all_gather(met, torch.tensor([job, rank]))
        assert torch.stack(met).tolist() == [[job, other] for other in range(RANKS)]
        dist.barrier()
    os._exit(0)  # gloo may never end by itself


@pytest.fixture
def of_the_shell(monkeypatch):
    """What a user's shell may hand to all jobs, with a port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        shell = {"MASTER_ADDR": "elsewhere", "MASTER_PORT": taken.getsockname()[1], "RANK": 7, "WORLD_SIZE": 1}
        for name, value in shell.items():
            monkeypatch.setenv(name, str(value))
        yield


@pytest.mark.usefixtures("of_the_shell")
@pytest.mark.parametrize("starts", [0, 2])
def test_each_job_meets_its_own_ranks(tmp_path, starts):
    """Three at a time, with one port in the environment of all; at first, and after starts that were killed."""
    for job, start in itertools.product(range(3), range(starts)):
        (tmp_path / f"{job}_0_start{start}.port").write_text("9")
    before = set(tmp_path.iterdir())
    mp.start_processes(rank_main, (tmp_path, starts), nprocs=3 * RANKS, start_method="fork")
    assert set(tmp_path.iterdir()) == before


def test_a_first_rank_that_says_nothing(tmp_path, monkeypatch):
    for name, value in rank_of(12, 1, tmp_path).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(TimeoutError, match=r"12_0_start0\.port'.*that all nodes share"),
        meeting(patience=0.1),
    ):
        pass
    assert not list(Path(tmp_path).iterdir())
