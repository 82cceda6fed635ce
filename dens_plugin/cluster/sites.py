"""What a Slurm site offers and asks for: one YAML file per site, and what becomes of it in ``sbatch``'s options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.settings import count, mapping, number, read_block, reject_unknown

_TEXTS = ("partition", "account", "qos", "constraint", "gpu_type")
_COUNTS = {"gpus_per_node": 0, "cpus_per_task": 1, "requeues": 0, "signal_seconds": 1, "parallel": 1}  # least value
# Options that this package or submitit sets: another value would part the bookkeeping from the job.
_RESERVED = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks_per_node", "gpus", "gpus_per_node", "gpus_per_task"), "`dens submit`"),
    **dict.fromkeys(("array", "output", "error", "open_mode", "job_name", "chdir", "folder"), "`dens submit`"),
    "time": "`hours`",
    "signal": "`signal_seconds`",
    "requeue": "`requeues`",
    "no_requeue": "`requeues`",
    "mem": "`memory_gb`",
    "cpus_per_task": "`cpus_per_task`",
}


class Shape(NamedTuple):
    """What all runs of one job array have in common.

    Attributes:
        nodes: nodes of a run.
        gpus: GPUs, and processes, per node; 0 for one process per node on its CPU.
        sbatch: options of ``sbatch`` that an experiment's ``slurm`` block asks for.
    """

    nodes: int
    gpus: int
    sbatch: tuple[tuple[str, Any], ...] = ()

    @property
    def processes_per_node(self) -> int:
        """Ranks on a node."""
        return max(self.gpus, 1)

    def __str__(self) -> str:
        """As in '2 nodes x 8 GPUs'."""
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        return f"{nodes} x {self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else f"{nodes}, CPU"


@dataclasses.dataclass(frozen=True)
class Site:
    """A site file.

    Attributes:
        partition: where jobs go; the site's default without it. So for ``account`` and ``qos``.
        constraint: a node feature, as ``volta32gb``.
        gpus_per_node: the most that a node has, and the default of a run; 0 trains on CPUs over gloo.
        gpu_type: for sites that want it named, as in ``--gpus-per-node=v100:8``.
        hours: time limit of one start; a run that needs longer is requeued and goes on.
        requeues: how often a run may reach that limit. Preemption before four fifths of it does not count; of a
            limit below ten minutes, every signal does.
        signal_seconds: warning before the time limit. A checkpoint must be reached within it: allow for the longest
            step or validation. Slurm may warn up to a minute earlier.
        memory_gb: per node; the site's default without it.
        cpus_per_task: per process; without it, one more than the experiment has loader workers.
        parallel: runs of an array at a time.
        setup: shell lines before a run, as ``module load cuda``.
        sbatch: further options of ``sbatch``, without dashes in front; ``true`` for those without a value.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int = 0
    gpu_type: str | None = None
    hours: float = 24.0
    requeues: int = 20
    signal_seconds: int = 120
    memory_gb: float | None = None
    cpus_per_task: int | None = None
    parallel: int = 256
    setup: tuple[str, ...] = ()
    sbatch: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def parameters(self, shape: Shape, *, name: str, workers: int) -> dict[str, Any]:
        """What submitit's Slurm executor is to be given for an array.

        Args:
            shape: of the array's runs.
            name: of the jobs in the queue.
            workers: the most loader workers per process of any of its runs.
        """
        cpus = self.cpus_per_task or workers + 1
        parameters = {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": math.ceil(self.hours * 60),
            "nodes": shape.nodes,
            "ntasks_per_node": shape.processes_per_node,
            "gpus_per_node": f"{self.gpu_type}:{shape.gpus}" if self.gpu_type and shape.gpus else shape.gpus or None,
            "cpus_per_task": cpus,
            "mem": f"{math.ceil(self.memory_gb * 1024)}M" if self.memory_gb else None,
            "signal_delay_s": self.signal_seconds,
            "array_parallelism": self.parallel,
            "setup": list(self.setup) or None,
            "stderr_to_stdout": True,
            # Since Slurm 22.05 srun does not take over sbatch's CPUs; and one rank's failure is the end of all, which
            # would otherwise wait half an hour for it.
            "srun_args": [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
            "additional_parameters": {"requeue": True, **self.sbatch, **dict(shape.sbatch)},
        }
        return {key: value for key, value in parameters.items() if value is not None}


def read_site(path: str | Path) -> Site:
    """Read a site file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for an unknown key or an impossible value, naming it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no site file '{path}'; write one after slurm/gpu.yml")
    block = read_block(path, f"the site file '{path}'")
    reject_unknown(block, (field.name for field in dataclasses.fields(Site)), f"'{path}'")
    given = {key: _value(key, value, f"{key} in '{path}'") for key, value in block.items() if value is not None}
    site = Site(**given)
    if site.signal_seconds >= 3600 * site.hours:
        raise ValueError(
            f"signal_seconds in '{path}' is {site.signal_seconds}, and `hours: {site.hours:g}` are "
            f"{3600 * site.hours:.0f} s: the warning would come before the start; lower it"
        )
    return site


def sbatch_options(block: Any, where: str) -> dict[str, Any]:
    """Options of ``sbatch`` as a person typed them, underscores for dashes.

    Raises:
        ValueError: for one that is set elsewhere, or a value that is not plain.
    """
    options = {str(key).lstrip("-").replace("-", "_"): value for key, value in mapping(block, where).items()}
    for key, value in options.items():
        if key in _RESERVED:
            raise ValueError(f"'{key}' in {where} is set by {_RESERVED[key]}; remove it there")
        is_plain = value is True or (isinstance(value, (str, int, float)) and not isinstance(value, bool))
        if not is_plain or not f"{key}{value}".isprintable():
            raise ValueError(f"'{key}' in {where} must be a text of one line, a number or true, got {value!r}")
    return options


def _value(key: str, value: Any, where: str) -> Any:
    """A checked value of one key of a site file."""
    if key in _TEXTS:
        return _text(value, where)
    if key in _COUNTS:
        return count(value, where, least=_COUNTS[key])
    if key == "setup":
        lines = [value] if isinstance(value, str) else value
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"{where} must be a list of shell lines, got {value!r}")
        return tuple(lines)
    if key == "sbatch":
        return sbatch_options(value, where)
    if not 0 < number(value, where) < math.inf:
        raise ValueError(f"{where} must be a finite number above 0, got {value!r}")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{where} must be a text of one line, got {value!r}")
    return value
