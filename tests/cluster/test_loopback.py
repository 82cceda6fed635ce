"""Slurm itself, two nodes on this machine: what it refuses, and runs that it interrupts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from cluster_samples import ROOT, STEPS, write
from fairchem.core._cli import runner_wrapper
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config
from submitit.helpers import CommandFunction

from dens_plugin.cli import main
from dens_plugin.cluster.sites import Shape, read_site
from dens_plugin.cluster.submit import Executor
from dens_plugin.training.history import FILE_NAME, read_history


@pytest.fixture
def idle(cluster):
    """The cluster, whose jobs are cancelled afterwards."""
    yield cluster
    cluster.cancel_all()


def steps_of(run):
    path = Path("runs/checkpoints", run, FILE_NAME)
    return [row["step"] for row in read_history(path) if row["split"] == "train"] if path.is_file() else []


def weights_of(run_dir, run):
    checkpoint = torch.load(Path(run_dir, "checkpoints", run, "checkpoint.pt"), weights_only=False)
    assert checkpoint["step"] == STEPS
    return checkpoint["state_dict"] | dict(enumerate(checkpoint["ema"]["shadow_params"]))


def states(cluster):
    """Job -> state, of all that are not finished."""
    return dict(line.split() for line in cluster.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines())


def jobs():
    rows = [json.loads(line) for line in Path("runs/submissions.jsonl").read_text().splitlines()]
    return {row["run"]: row["job"] for row in rows}


def log_of(job):
    return "".join(path.read_text() for path in sorted(Path("runs/slurm").glob(f"{job}_*_log.out")))


def interrupt(cluster, ways):
    """Interrupt the runs that train by now, each its own way, and strike them off; whether none is left.

    Each at its own time, so that none ends while another one starts.
    """
    queued, job_of = states(cluster), jobs()
    for run in list(ways):
        assert job_of[run] in queued, log_of(job_of[run])[-3000:]
        if len(steps_of(run)) > 3:
            cluster.run(*ways.pop(run))
    return not ways


def hurry(cluster):
    """Start what was requeued: Slurm lets it wait for two minutes."""
    for job, state in states(cluster).items():
        if state == "PENDING":
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False)


def undisturbed(rank, port):
    """A rank of the same run without Slurm."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}.items():
            patch.setenv(name, str(value))
        patch.setattr(distutils, "cleanup", lambda: os._exit(0))  # gloo may never end by itself
        options = ["--mode", "train", "--config-yml", "tiny.yml", "--cpu", "--num-gpus", "2"]
        args = flags.get_parser().parse_args([*options, "--run-dir", "reference", "--timestamp-id", "undisturbed"])
        runner_wrapper(build_config(args, []))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes, on one core; the limits below are for failures only
def test_an_interrupted_array_is_the_undisturbed_run(idle, workplace, capsys, monkeypatch):
    """The same run twice, on two nodes: submitit requeues the one at a signal, Slurm the other without one."""
    for name, value in {"MASTER_PORT": "29500", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)  # the same for all jobs, as a shell may have it: sbatch hands it on
    twice = [{"config": "tiny.yml", "name": name} for name in ("signalled", "requeued")]
    twice[1]["set"] = {"optim.checkpoint_every": 3}  # it may be given no time to save when it is stopped
    write(workplace / "sweep.yml", {"experiments": twice, "nodes": 2})
    main(["submit", "sweep.yml", "--site", "site.yml", "--set", "print_every=1"])
    signalled, requeued = (jobs()[f"{entry['name']}-seed0"] for entry in twice)
    assert signalled.partition("_")[0] == requeued.partition("_")[0]  # one array
    ways = {
        "signalled-seed0": ("scancel", "--signal=USR2", signalled),
        "requeued-seed0": ("scontrol", "requeue", requeued),
    }
    idle.wait_until(lambda: interrupt(idle, ways), seconds=600)
    with pytest.raises(SystemExit):
        main(["submit", "sweep.yml", "--site", "site.yml", "--resume"])
    assert "all of these runs are in the queue" in capsys.readouterr().err
    mp.start_processes(undisturbed, (free_port(),), nprocs=2, start_method="fork")
    idle.wait_until(lambda: hurry(idle) or not states(idle), seconds=600)
    expected = weights_of("reference", "undisturbed")
    for run, job in jobs().items():
        log = log_of(job)
        assert log.count("Starting with JobEnvironment") == 4, log[-3000:]  # two ranks, twice
        assert "Previous checkpoint found" in log, log[-3000:]
        assert "Job completed successfully" in log, log[-3000:]
        found = weights_of("runs", run)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), run
    assert "Requeued job" in log_of(signalled)
    assert "Requeued job" not in log_of(requeued)


def test_one_rank_that_fails_ends_all(idle, tmp_path):
    """The others would wait for it in a collective until NCCL gives up, half an hour."""
    site = read_site(ROOT / "slurm" / "loopback.yml")
    executor = Executor(tmp_path / "slurm", max_num_timeout=0)
    executor.update_parameters(**site.parameters(Shape(2, 0), name="failing", workers=0))
    executor.submit(CommandFunction(["sh", "-c", "if [ $SLURM_PROCID = 0 ]; then sleep 300; else exit 1; fi"]))
    idle.wait_until(lambda: not states(idle), seconds=120)


def test_slurm_refuses(cluster, workplace, capsys):
    """One line that says why, and no folder that would stand in the way of the next attempt."""
    write(workplace / "site.yml", {"partition": "nowhere"})
    with pytest.raises(SystemExit):
        main(["submit", "tiny.yml", "--site", "site.yml", "--seeds", "0,1"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dens: error: Slurm refused tiny-seed0")
    assert "invalid partition specified: nowhere" in line
    assert not list(Path("runs/checkpoints").iterdir())
