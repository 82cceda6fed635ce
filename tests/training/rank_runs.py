"""Training runs in forked processes, one or several ranks over gloo, that tests may kill."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
from fairchem.core.common import distutils
from samples import trainer_arguments

from dens_plugin.training.trainer import DeNSTrainer

RUN_NAME = "the-run"


def no_change(trainer):
    """For runs in which nothing happens to the trainer."""


class Ranks:
    """The processes of one attempt at a run.

    Args:
        config: of the run; its data must be open in no other process of this test.
        folder: the run's, in which an earlier attempt may have left checkpoints.
        world_size: number of ranks.
        change: called with the trainer before it trains, in every rank, to make something happen.
    """

    def __init__(self, config, folder, world_size, change=no_change):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        rendezvous = self.folder / f"rendezvous-{time.monotonic_ns()}"
        self._started = mp.get_context("fork").Event()
        arguments = (config, str(folder), world_size, str(rendezvous), change, self._started)
        self._context = mp.start_processes(  # forked, since a new interpreter would import everything again
            _rank_main, arguments, nprocs=world_size, join=False, start_method="fork"
        )

    def wait_until_training(self):
        assert self._started.wait(120)

    def kill(self):
        """SIGKILL to all ranks at once; returns whether any was still running."""
        alive = [process for process in self._context.processes if process.is_alive()]
        for process in alive:
            os.kill(process.pid, signal.SIGKILL)
        for process in self._context.processes:
            process.join()
        return bool(alive)

    def exit_codes(self):
        for process in self._context.processes:
            process.join(240)
        return [process.exitcode for process in self._context.processes]


def _rank_main(rank, config, folder, world_size, rendezvous, change, started):
    torch.set_num_threads(1)
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
        )
    else:
        distutils.setup_env_local()
    trainer = DeNSTrainer(**trainer_arguments(config, run_dir=folder, timestamp_id=RUN_NAME))
    newest = Path(trainer.config["cmd"]["checkpoint_dir"]) / "checkpoint.pt"
    if newest.is_file():  # as fairchem's task does
        trainer.load_checkpoint(str(newest))
    change(trainer)
    started.set()
    trainer.train(disable_eval_tqdm=True)
    if rank == 0:
        torch.save(final_state(trainer), f"{folder}/final.pt")
    if world_size > 1:
        end_of_rank()


def end_of_rank():
    """End a forked process when all ranks have come here; gloo's own end may wait for ever in a fork."""
    torch.distributed.barrier()
    os._exit(0)


def final_state(trainer):
    """Everything of a run that a step changes, as a flat dictionary of tensors."""
    state = {f"model {key}": value for key, value in trainer._unwrapped_model.state_dict().items()}
    state |= {f"average {index}": value for index, value in enumerate(trainer.ema.shadow_params)}
    for index, values in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimiser {index} {key}": torch.as_tensor(value) for key, value in values.items()}
    return state | {
        "step": torch.tensor(trainer.step),
        "learning rate": torch.tensor(trainer.scheduler.get_lr(), dtype=torch.float64),
        "best": torch.tensor(trainer.best_val_metric, dtype=torch.float64),
    }


def run_to_the_end(config, folder, world_size=1, change=no_change):
    """The final state of a run that nothing disturbs."""
    codes = Ranks(config, folder, world_size, change).exit_codes()
    assert codes == [0] * world_size
    return torch.load(f"{folder}/final.pt", weights_only=True)


def assert_same_run(found, expected):
    """Bit for bit."""
    assert found.keys() == expected.keys()
    assert not [key for key, value in expected.items() if not torch.equal(found[key], value)]
