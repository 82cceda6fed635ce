"""`dens submit`: experiments and sweeps as job arrays, one array for all runs of the same size.

A run's folders bear its name, EXPERIMENT-seedN, and not the time: a requeued or resubmitted run finds its checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from dens_plugin.cluster import index
from dens_plugin.cluster.job import TrainingJob
from dens_plugin.cluster.plan import Run, Wish, by_shape, plan
from dens_plugin.cluster.sites import Shape, Site, read_site
from dens_plugin.cluster.sweeps import read_entries, seeds_of
from dens_plugin.data.output import require_makeable
from dens_plugin.settings import count

_LOGS = "slurm"  # the folder of logs, scripts and pickled jobs, in the run folder


class Executor(SlurmExecutor):
    """Submitit's, which can also show its script, and where Slurm is not installed."""

    @classmethod
    def affinity(cls) -> int:
        """Available: whether Slurm is here is asked when it is needed."""
        return 2

    def script(self, runs: int) -> str:
        """What ``sbatch`` would be given for so many runs."""
        shown = type(self)(self.folder)
        shown.parameters = self.parameters | ({"map_count": runs} if runs > 1 else {})
        return shown._make_submission_file_text(self._submitit_command_str, uid="")


class _Array(NamedTuple):
    """Runs of one shape and what submits them."""

    shape: Shape
    runs: list[Run]
    executor: Executor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``dens submit``."""
    parser.add_argument("experiments", nargs="+", metavar="FILE", help="experiments or sweeps, .yml")
    parser.add_argument("--site", required=True, metavar="FILE", help="what the cluster offers, as slurm/gpu.yml")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of a run (default: the sweep's, else 1)")
    parser.add_argument(
        "--gpus", type=int, metavar="G", help="GPUs per node; 0 trains on CPUs (default: the sweep's, else the site's)"
    )
    parser.add_argument("--seeds", metavar="S,S,...", help="a run for each (default: the sweep's, else 0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs")
    parser.add_argument("--run-dir", default="runs", metavar="DIR", help="folder of all runs (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="let runs that exist and are not in the queue go on")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print what would be submitted")


def run(args: argparse.Namespace) -> None:
    """Submit, after everything that can be looked at before."""
    site, run_dir = read_site(args.site), Path(args.run_dir).resolve()
    if not args.dry_run and shutil.which("sbatch") is None:
        raise ValueError("there is no `sbatch` here: submit on a login node of the cluster, or add --dry-run")
    runs = plan(read_entries(args.experiments), site, _wish(args, run_dir))
    require_makeable(run_dir / "checkpoints" / runs[0].name)
    runs = _not_queued(runs, run_dir) if args.resume else _new(runs, run_dir)
    name = Path(args.experiments[0]).stem
    arrays = [_array(shape, members, site, run_dir, name) for shape, members in by_shape(runs).items()]
    print(_summary(arrays, args.site))
    for array in arrays:
        if args.dry_run:
            print(array.executor.script(len(array.runs)))
        else:
            _submit(array, run_dir)


def _wish(args: argparse.Namespace, run_dir: Path) -> Wish:
    seeds = None if args.seeds is None else seeds_of(_whole_numbers(args.seeds), "--seeds")
    nodes = None if args.nodes is None else count(args.nodes, "--nodes", least=1)
    gpus = None if args.gpus is None else count(args.gpus, "--gpus", least=0)
    return Wish(run_dir, seeds, nodes, gpus, tuple(args.set))


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds must be whole numbers with commas between, as 0,1,2, got '{text}'") from None


def _array(shape: Shape, runs: list[Run], site: Site, run_dir: Path, name: str) -> _Array:
    executor = Executor(run_dir / _LOGS, max_num_timeout=site.requeues)
    executor.update_parameters(**site.parameters(shape, name=name, workers=max(run.workers for run in runs)))
    return _Array(shape, runs, executor)


def _new(runs: list[Run], run_dir: Path) -> list[Run]:
    """The runs, none of which may have a folder: two jobs must never write to one."""
    taken = [run.name for run in runs if _folder(run_dir, run).exists()]
    if taken:
        others = f" and {len(taken) - 1} more are" if len(taken) > 1 else " is"
        raise ValueError(
            f"the run '{taken[0]}'{others} in '{run_dir}' already; --resume goes on from the checkpoints, another "
            "--run-dir or a `name` in a sweep file starts afresh"
        )
    return runs


def _not_queued(runs: list[Run], run_dir: Path) -> list[Run]:
    """The runs of which no job is queued or running."""
    jobs = index.jobs_of(run_dir, [run.name for run in runs])
    active = _active_jobs() if jobs and shutil.which("squeue") else set()
    queued = {name: job for job, name in jobs.items() if job in active}
    for name, job in queued.items():
        print(f"Left alone: {name}, job {job} of which is in the queue")
    if len(queued) == len(runs):
        raise ValueError("all of these runs are in the queue; `scancel` those that are to start again from checkpoints")
    return [run for run in runs if run.name not in queued]


def _active_jobs() -> set[str]:
    """Ids of all jobs that are queued or running, array tasks as ``12_0``."""
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise ValueError(f"Slurm does not say which runs are in the queue: {asked.stderr.strip()}")
    return set(asked.stdout.split())


def _submit(array: _Array, run_dir: Path) -> None:
    with _claimed([_folder(run_dir, run) for run in array.runs]):
        try:
            jobs = array.executor.submit_array([TrainingJob(run.config) for run in array.runs])
        except (FailedJobError, FailedSubmissionError) as error:
            raise ValueError(f"Slurm refused {array.runs[0].name} ({array.shape}): {error}") from error
    rows = [_row(run, job.job_id, str(job.paths.stdout)) for run, job in zip(array.runs, jobs, strict=True)]
    index.record(run_dir, rows)
    for row in rows:
        print(f"Job {row['job']}: {row['run']}, log {row['log']}")


@contextlib.contextmanager
def _claimed(folders: Sequence[Path]) -> Iterator[None]:
    """Make the runs' folders, so that nobody else submits the same; take away the new ones if submission fails."""
    made = []
    try:
        for folder in folders:
            if not folder.exists():
                folder.mkdir(parents=True)
                made.append(folder)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # it is in use already
                folder.rmdir()
        raise


def _row(run: Run, job: str, log: str) -> dict[str, object]:
    return {
        "run": run.name,
        "job": job,
        "experiment": str(run.experiment),
        "seed": run.seed,
        "nodes": run.shape.nodes,
        "gpus": run.shape.gpus,
        "log": log,
        "time": time.time(),
    }


def _folder(run_dir: Path, run: Run) -> Path:
    return run_dir / "checkpoints" / run.name


def _summary(arrays: Sequence[_Array], site: str) -> str:
    lines = [f"  {run.name}: {array.shape}, {run.step}" for array in arrays for run in array.runs]
    split = ", one for each size of run" if len(arrays) > 1 else ""
    return "\n".join(
        [f"{_counted(len(lines), 'run')} in {_counted(len(arrays), 'job array')} at {site}{split}:", *lines]
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"
