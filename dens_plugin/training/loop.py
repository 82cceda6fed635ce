"""The training loop: batches in, optimiser steps out, and at the end of each what others may see of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils
from torch.nn.parallel import DistributedDataParallel

from dens_plugin.fields import identifiers
from dens_plugin.training.interruption import Interruption, wait_for_others, workers_let_go
from dens_plugin.training.ledger import Entry, Ledger
from dens_plugin.training.optimizer import clip_gradients, divide_shared_gradients, take_step
from dens_plugin.training.step_random import seed_step

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.training.graphed_step import GraphedStep
    from dens_plugin.training.trainable import Trainable

_STEPS_UNTIL_READ = 10  # on a GPU, which is asked only so often what became of its steps


class TrainingLoop:
    """A run from the trainer's current step to its last.

    Nothing in a step waits for a GPU: whether a loss or gradient is finite is decided there, and losses, bad steps
    and signals are read every few steps. On a CPU, which has nothing to wait for, they are read in each.

    Args:
        trainer: with everything loaded.
        graphed: takes the steps in place of `optimise`, where they are recorded.
    """

    def __init__(self, trainer: Trainable, graphed: GraphedStep | None = None) -> None:
        self.trainer, self._graphed = trainer, graphed
        optim = trainer.config["optim"]
        self.steps_per_epoch = len(trainer.train_loader)
        self._last_step = optim["max_epochs"] * self.steps_per_epoch
        self.accumulate = trainer.accumulate_steps
        self.eval_every = optim.get("eval_every", self.steps_per_epoch)
        self.checkpoint_every = optim.get("checkpoint_every", self.eval_every)
        self.ledger = Ledger(trainer.bad_steps)
        self.read_every = self.accumulate * (1 if trainer.device.type == "cpu" else _STEPS_UNTIL_READ)
        self.interruption = Interruption()
        self._parameters = list(trainer.model.parameters())
        self._spoilt = torch.zeros((), dtype=torch.bool, device=trainer.device)  # a batch of this step was bad

    def run(self, *, disable_eval_tqdm: bool = False) -> None:
        """Train; signals that end a job wait for the end of a step.

        Raises:
            FloatingPointError: after too many bad steps in a row.
        """
        trainer = self.trainer
        with self.interruption, workers_let_go():
            for epoch in range(trainer.step // self.steps_per_epoch, trainer.config["optim"]["max_epochs"]):
                for batch in self._batches(epoch):
                    self.step(batch, disable_eval_tqdm=disable_eval_tqdm)
                if self.checkpoint_every == -1:
                    trainer.save()
        self.ledger.settle()
        trainer.bad_steps.require_any()

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch that are still to come; trainer and batch agree on the number of the step."""
        trainer, done = self.trainer, self.trainer.step % self.steps_per_epoch
        trainer.train_sampler.set_epoch_and_start_iteration(epoch, done)
        for index, batch in enumerate(trainer.train_loader, start=done + 1):
            trainer.step = epoch * self.steps_per_epoch + index
            trainer.epoch = epoch + index / self.steps_per_epoch
            yield batch

    def step(self, batch: Batch, *, disable_eval_tqdm: bool = False) -> None:
        """One step, from a batch to what follows from it."""
        trainer = self.trainer
        step, learning_rate = trainer.step, trainer.scheduler.get_lr()
        # batch, outputs, loss, agreement, gradients, optimiser, averages
        if self._graphed is None:
            self.ledger.add(self.optimise(batch))
        else:
            self.ledger.note(self._graphed(batch, is_first=self._is_first, is_last=self._is_last))
        trainer.scheduler.step()

        is_printed = step % trainer.config["cmd"]["print_every"] == 0
        signal = 0
        if is_printed or step % self.read_every == 0:
            self.ledger.settle()
            signal = _on_any_rank(self.interruption.received, trainer.device) if step % self.accumulate == 0 else 0
        if is_printed:
            trainer.report({**self.ledger.means(), "lr": learning_rate, "epoch": trainer.epoch, "step": step})

        is_evaluated = step % self.eval_every == 0 or (step == self._last_step and trainer.val_loader is not None)
        is_saved = self.checkpoint_every != -1 and step % self.checkpoint_every == 0
        if is_saved or signal:
            trainer.save_step(evaluation_follows=is_evaluated)
        if signal:
            self.interruption.hand_over(signal)
            wait_for_others()
        if is_evaluated:
            self.ledger.settle()
            trainer.evaluate(disable_tqdm=disable_eval_tqdm)
            if self._graphed is not None:
                self._graphed.forget_what_moved()
            if is_saved:
                trainer.save_step()

    @property
    def _is_first(self) -> bool:
        """Whether the batch is the first of an optimiser step."""
        return self.accumulate == 1 or self.trainer.step % self.accumulate == 1

    @property
    def _is_last(self) -> bool:
        return self.trainer.step % self.accumulate == 0

    def optimise(self, batch: Batch) -> Entry:
        """From a batch to gradients and, with the last one of an optimiser step, to new weights and averages."""
        trainer = self.trainer
        names = identifiers(batch)
        if self._is_first:
            trainer.optimizer.zero_grad()
            self._spoilt = torch.zeros_like(self._spoilt)
        if not trainer._unwrapped_model.training:  # to tell every module anew takes longer than some layers
            trainer.model.train()
        seed_step(trainer.seed, trainer.step, "train")

        with contextlib.nullcontext() if self._is_last else _gradients_local(trainer.model):
            with torch.autocast("cuda", enabled=trainer.scaler is not None):
                outputs = trainer._forward(batch)
                loss = trainer.loss(outputs, batch)
            (_scaled(trainer.scaler, loss.value) / self.accumulate).backward()
        self._spoilt = self._spoilt | loss.bad

        entry = Entry(trainer.step, names, loss.value.detach(), loss.bad, trainer.training_errors(outputs, batch))
        return self._update(entry) if self._is_last else entry

    def _update(self, entry: Entry) -> Entry:
        """Clip, step, average, unless the step is bad: then weights stay as they are."""
        trainer, scaler = self.trainer, self.trainer.scaler
        divide_shared_gradients(trainer.model)
        if scaler is not None:
            scaler.unscale_(trainer.optimizer)
        norm = clip_gradients(self._parameters, trainer.clip_grad_norm)
        bad_gradient = ~torch.isfinite(norm) & ~self._spoilt
        if scaler is not None:  # an overflow is its business: it leaves the step out and makes its scale smaller
            scaler.step(trainer.optimizer)
            scaler.update()
            bad_gradient = torch.zeros_like(bad_gradient)
        else:
            take_step(trainer.optimizer, leave_out=self._spoilt | bad_gradient)
        if trainer.ema is not None:
            trainer.ema.update()
        return entry._replace(norm=norm, bad_gradient=bad_gradient, is_taken=~(self._spoilt | bad_gradient))


def _gradients_local(model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Ranks sum their gradients once, with the last batch of an optimiser step."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def _scaled(scaler: Any, loss: torch.Tensor) -> torch.Tensor:
    return loss if scaler is None else scaler.scale(loss)


def _on_any_rank(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers."""
    if distutils.get_world_size() == 1:
        return number
    told = torch.tensor(number, device=device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return int(told)
