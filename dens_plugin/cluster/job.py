"""A training run inside a Slurm job, which goes on where it was after preemption, a time limit or a requeue.

Its folder has the run's own name, so that every start finds the run's checkpoints, whether submitit requeued the
job (USR2 before the time limit or preemption) or Slurm did (node failure, ``scontrol requeue``). What happens at a
signal while training is `dens_plugin.training.interruption`'s: the trainer saves at the end of the step. Before the
first step there is nothing to save, and other trainers than ours go on from their last periodic checkpoint.
"""

from __future__ import annotations

import importlib
from typing import Any

from submitit.helpers import Checkpointable


class TrainingJob(Checkpointable):
    """What submitit pickles, calls on every rank, and resubmits unchanged.

    Args:
        config: as `fairchem.core.common.utils.build_config` returns it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self) -> None:
        """Train. The ranks meet through torch's environment variables.

        fairchem's own Slurm set-up takes one port for all jobs, so that two on a node collide, and knows only NCCL.
        """
        # By name: submitit heeds signals only once it has unpickled this object, and importing torch takes seconds.
        with importlib.import_module("dens_plugin.cluster.rendezvous").meeting():
            importlib.import_module("dens_plugin.compat").prepare_host()
            importlib.import_module("dens_plugin.cluster.rank").run_rank(self.config)
