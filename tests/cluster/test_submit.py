"""`dens submit` before Slurm takes over: what would run, in which arrays, and what is refused on the login node."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import pytest
from cluster_samples import tiny, write
from submitit.helpers import DelayedSubmission

from dens_plugin.cli import main
from dens_plugin.cluster import index
from dens_plugin.cluster.plan import Wish, by_shape, plan
from dens_plugin.cluster.sites import Shape, Site
from dens_plugin.cluster.submit import _claimed
from dens_plugin.cluster.sweeps import read_entries

SITE = Site(gpus_per_node=8)
SUBMIT = ["submit", "tiny.yml", "--site", "site.yml"]


def planned(*paths, site=SITE, **wish):
    return plan(read_entries(paths), site, Wish(Path("/runs"), **wish))


def sweep(workplace, **block):
    return write(workplace / "sweep.yml", block)


def refused(arguments, capsys):
    """The one line of a refusal, which leaves nothing behind."""
    before = set(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dens:")]
    assert set(Path.cwd().rglob("*")) == before
    return line


class TestPlan:
    def test_names_and_seeds(self, workplace):
        runs = planned("tiny.yml", seeds=(0, 3))
        assert [run.name for run in runs] == ["tiny-seed0", "tiny-seed3"]
        for run in runs:
            assert run.config["timestamp_id"] == run.config["identifier"] == run.name
            assert run.config["seed"] == run.seed
            assert run.config["run_dir"] == "/runs"
            assert not run.config["submit"]  # the ranks meet by themselves, over NCCL or gloo

    @pytest.mark.parametrize(("gpus", "backend", "ranks"), [(0, "gloo", 2), (4, "nccl", 8)])
    def test_size(self, workplace, gpus, backend, ranks):
        (run,) = planned("tiny.yml", nodes=2, gpus=gpus)
        assert run.config["distributed_backend"] == backend
        assert run.config["cpu"] == (gpus == 0)
        assert run.config["world_size"] == ranks
        assert run.batch_size == 2 * ranks
        assert run.step == f"{2 * ranks} structures per step"
        filled = run._replace(config={**run.config, "optim": {"batch_atoms": 500}})
        assert filled.step == f"up to {500 * ranks} atoms per step"

    def test_the_site_gives_the_default_size(self, workplace):
        (run,) = planned("tiny.yml")
        assert run.shape == Shape(1, 8)

    def test_command_line_over_experiment_over_sweep(self, workplace):
        experiments = ["tiny.yml", {"config": "tiny.yml", "name": "large", "nodes": 4}]
        path = sweep(workplace, experiments=experiments, nodes=2, gpus=2, seeds=[0, 1])
        assert [run.shape for run in planned(path)] == [Shape(2, 2)] * 2 + [Shape(4, 2)] * 2
        (small, large) = planned(path, nodes=1, seeds=(5,))
        assert (small.shape, large.shape, large.seed) == (Shape(1, 2), Shape(1, 2), 5)

    def test_changes(self, workplace):
        changes = {"optim.lr_initial": "1e-4", "model.lmax_list": [2], "optim.clip_grad_norm": None}
        path = sweep(workplace, experiments=[{"config": "tiny.yml", "set": changes}])
        (run,) = planned(path, changes=("print_every=3", "task.objective.prob=0.25", "amp=false"))
        assert run.config["amp"] is False  # and not the text, which counts as true
        assert run.config["optim"]["lr_initial"] == 1e-4
        assert "clip_grad_norm" not in run.config["optim"]  # null drops it
        assert run.config["model"]["lmax_list"] == [2]
        assert run.config["print_every"] == 3
        assert run.config["task"]["objective"] == {"name": "dens", "prob": 0.25}

    def test_one_array_for_each_size(self, workplace):
        config = tiny() | {"slurm": {"constraint": "volta32gb"}}
        write(workplace / "theirs.yml", config)
        experiments = ["tiny.yml", {"config": "tiny.yml", "name": "large", "nodes": 2}, "theirs.yml"]
        runs = planned(sweep(workplace, experiments=experiments, seeds=[0, 1]))
        assert {shape: len(members) for shape, members in by_shape(runs).items()} == {
            Shape(1, 8): 2,
            Shape(2, 8): 2,
            Shape(1, 8, (("constraint", "volta32gb"),)): 2,
        }

    def test_two_runs_of_one_name(self, workplace):
        path = sweep(workplace, experiments=["tiny.yml", {"config": "tiny.yml", "set": {"optim.batch_size": 4}}])
        with pytest.raises(ValueError, match="two runs would be called 'tiny-seed0'"):
            planned(path)

    def test_every_experiment_is_looked_at(self, workplace):
        changed = {"config": "tiny.yml", "name": "b", "set": {"optim.max_epoch": 3}}
        with pytest.raises(ValueError, match="did you mean 'max_epochs'"):
            planned(sweep(workplace, experiments=["tiny.yml", changed]))


class TestJob:
    def test_is_resubmitted_as_it_was(self, workplace):
        """Whether submitit pickles it anew or Slurm starts the first pickle again."""
        job = importlib.import_module("dens_plugin.cluster.job").TrainingJob(planned("tiny.yml")[0].config)
        again = job.checkpoint()
        assert isinstance(again, DelayedSubmission)
        assert pickle.loads(pickle.dumps(again.function)).config == job.config

    def test_listens_to_signals_before_it_imports_fairchem(self):
        """Unpickling comes before submitit's handlers: what it imports must take no time."""
        script = "import dens_plugin.cluster.job, sys; sys.exit('fairchem' in sys.modules or 'torch' in sys.modules)"
        assert importlib.import_module("subprocess").run([sys.executable, "-c", script], check=False).returncode == 0


class TestDryRun:
    def test_shows_the_scripts_and_writes_nothing(self, workplace, capsys):
        before = set(workplace.rglob("*"))
        main([*SUBMIT, "--nodes", "2", "--seeds", "0,1", "--dry-run"])
        text = capsys.readouterr().out
        assert "2 runs in 1 job array at site.yml" in text
        assert "tiny-seed1: 2 nodes, CPU, 4 structures per step" in text
        assert "#SBATCH --array=0-1%2" in text
        assert set(workplace.rglob("*")) == before


class TestRefusals:
    @pytest.fixture(autouse=True)
    def without_slurm(self, monkeypatch):
        monkeypatch.setenv("PATH", "")

    def test_no_slurm(self, workplace, capsys):
        assert "there is no `sbatch` here" in refused(SUBMIT, capsys)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--gpus", "2"], "'tiny' wants 2 GPUs per node and the site has 0"),
            (["--nodes", "0"], "--nodes must be a whole number of at least 1, got 0"),
            (["--seeds", "0,x"], "--seeds must be whole numbers"),
            (["--seeds", "1,1"], "seeds in --seeds repeat"),
            (["--set", "optim.lr_initial"], "'optim.lr_initial' is no change of a setting"),
            (["--set", "optim.lr_inital=1"], "unknown key 'lr_inital' in optim; did you mean 'lr_initial'?"),
            (["--set", "timestamp_id=x"], "'timestamp_id' cannot be set for a submitted run"),
            (["--set", "slurm.nodes=2"], "'slurm.nodes' cannot be set for a submitted run"),
            (["--set", "dataset.train.src=nowhere"], "dataset.train.src: there is no 'nowhere'"),
            (["--set", "checkpoint=none.pt"], "no checkpoint at 'none.pt'"),
            (["--site", "nowhere.yml"], "there is no site file 'nowhere.yml'"),
            (["--run-dir", "/proc/runs"], "cannot be made because nothing can be written to the folder /proc"),
        ],
    )
    def test_slips(self, workplace, capsys, options, message):
        assert message in refused([*SUBMIT, "--dry-run", *options], capsys)

    def test_a_run_that_exists(self, workplace, capsys):
        (workplace / "runs" / "checkpoints" / "tiny-seed0").mkdir(parents=True)
        line = refused([*SUBMIT, "--dry-run", "--seeds", "0,1"], capsys)
        assert "the run 'tiny-seed0' is in" in line
        assert "--resume goes on from the checkpoints" in line


class TestClaims:
    def fail(self, folders, within):
        """A submission that is interrupted after something happened."""
        with _claimed(folders):
            within()
            raise KeyboardInterrupt

    def test_a_failed_submission_takes_its_own_folders_away(self, tmp_path):
        old, new = tmp_path / "old", tmp_path / "new"
        old.mkdir()
        with pytest.raises(KeyboardInterrupt):
            self.fail([old, new], lambda: new.rmdir() or new.mkdir())  # it is there
        assert list(tmp_path.iterdir()) == [old]

    def test_what_runs_already_stays(self, tmp_path):
        used = tmp_path / "new" / "checkpoint.pt"
        with pytest.raises(KeyboardInterrupt):
            self.fail([used.parent], used.touch)
        assert used.exists()


class TestResume:
    @pytest.fixture(autouse=True)
    def queue(self, workplace, monkeypatch):
        """Slurm's list of jobs, in the file `queue`, and three runs that were submitted before."""
        (workplace / "bin").mkdir()
        squeue = workplace / "bin" / "squeue"
        squeue.write_text(f"#!/bin/sh\n[ \"$*\" = '--noheader --array --format=%i' ] && /bin/cat {workplace}/queue\n")
        squeue.chmod(0o755)
        monkeypatch.setenv("PATH", str(squeue.parent))
        for seed in range(3):
            (workplace / "runs" / "checkpoints" / f"tiny-seed{seed}").mkdir(parents=True)
        index.record(workplace / "runs", [{"run": f"tiny-seed{seed}", "job": f"12_{seed}"} for seed in range(3)])
        index.record(workplace / "runs", [{"run": "tiny-seed0", "job": "15"}])
        return workplace / "queue"

    def resumed(self, capsys):
        main([*SUBMIT, "--dry-run", "--seeds", "0,1,2", "--resume"])
        text = capsys.readouterr().out
        return {line.split(":")[0].strip() for line in text.splitlines() if line.startswith("  tiny")}, text

    def test_all_go_on(self, queue, capsys):
        queue.write_text("7\n12_7\n")
        assert self.resumed(capsys)[0] == {"tiny-seed0", "tiny-seed1", "tiny-seed2"}

    def test_what_is_in_the_queue_is_left_alone(self, queue, capsys):
        """By any of its jobs: two must never write to one folder."""
        queue.write_text("15\n12_1\n12_7\n")
        runs, text = self.resumed(capsys)
        assert runs == {"tiny-seed2"}
        assert "Left alone: tiny-seed0, job 15 of which is in the queue" in text

    def test_nothing_is_left(self, queue, capsys):
        queue.write_text("12_0\n12_1\n12_2\n")
        assert "all of these runs are in the queue" in refused(
            [*SUBMIT, "--seeds", "0,1,2", "--resume", "--dry-run"], capsys
        )

    def test_slurm_does_not_answer(self, queue, capsys):
        """Without an answer nothing is known of the queue, and nothing is submitted."""
        line = refused([*SUBMIT, "--seeds", "0", "--resume", "--dry-run"], capsys)
        assert "Slurm does not say which runs are in the queue" in line
