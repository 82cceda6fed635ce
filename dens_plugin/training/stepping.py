"""fairchem's trainer with a step that is one: it has its own random numbers, and nobody looks on before its end.

fairchem's loop ends a step by calling its scheduler, after it has saved and evaluated. Here what must see a finished
step, of the same number on all ranks, waits for that call: checkpoints, and the signals of preemption.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from torch.nn.parallel import DistributedDataParallel

from dens_plugin.checks.optim import require_optim, without_nulls
from dens_plugin.settings import with_numbers
from dens_plugin.training.bad_steps import BadSteps, NonFiniteGradientError, bad_steps_allowed, clip_gradients
from dens_plugin.training.interruption import Interruption, wait_for_others, workers_let_go
from dens_plugin.training.optimizer import Averages, is_left_out, keep_way_of_stepping, with_fused_step
from dens_plugin.training.step_random import seed_step
from dens_plugin.training.steps import accumulate_steps, autocast_dtype, gradients_kept, suit_schedule

if TYPE_CHECKING:
    from torch_geometric.data import Batch


class SteppingTrainer(EquiformerV2ForcesTrainer):
    """What happens within a step; options beside fairchem's:

    - ``optim.autocast``: ``bf16`` to run the model under bfloat16 autocast.
    - ``optim.accumulate_steps``: batches per optimiser step.
    - ``optim.max_bad_steps``: how many steps in a row may be left out for a NaN, 10 by default.
    """

    _running = False  # whether `train` is on its way
    _in_step = False  # whether fairchem's loop is between a forward pass and the end of its step
    _bad_loss = False  # whether a rank's loss of this batch is not finite
    _spoilt = False  # whether a batch of this optimiser step was bad
    _signal = 0  # the signal to obey at the end of the step, on all ranks

    def load(self, inference_only: bool) -> None:
        """Read the options, then everything else."""
        self.config["optim"] = without_nulls(with_numbers(self.config["optim"]))
        if not inference_only:
            require_optim(self.config["optim"])
        self._autocast_dtype = autocast_dtype(self.config)
        self._accumulate_steps = accumulate_steps(self.config["optim"])
        self._bad_steps = BadSteps(bad_steps_allowed(self.config["optim"]))
        self._interruption = Interruption()
        super().load(inference_only)

    def load_optimizer(self) -> None:
        """fairchem's, fused where torch can."""
        stated = self.config["optim"]
        self.config["optim"] = with_fused_step(stated, self.model.parameters())
        try:
            super().load_optimizer()
        finally:
            self.config["optim"] = stated
        keep_way_of_stepping(self.optimizer)

    def load_extras(self) -> None:
        """fairchem's, with an end to every step, and gradients looked at before they are used."""
        if self.train_loader is not None:
            suit_schedule(self.config["optim"], len(self.train_loader))
        super().load_extras()
        if self.ema is not None:
            self.ema = Averages(self.model.parameters(), self.ema_decay)
        self._gradient_limit, self.clip_grad_norm = self.clip_grad_norm, None  # clipped by `_before_optimizer_step`
        self.optimizer.register_step_pre_hook(self._before_optimizer_step)
        if self.train_loader is not None:
            self.scheduler = _FollowedScheduler(self.scheduler, self._end_of_step)

    @property
    def _seed(self) -> int:
        return self.config["cmd"]["seed"] or 0

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """fairchem's loop, which signals wait for.

        Raises:
            FloatingPointError: after too many bad steps in a row.
        """
        self._running = True
        try:
            with self._interruption, workers_let_go():
                super().train(disable_eval_tqdm)
            self._bad_steps.require_any()
        finally:
            self._running = self._in_step = False

    def finish_step(self, *, interrupted: bool) -> None:
        """Called after every optimiser step, on all ranks, before a signal is obeyed; for heirs."""

    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        if self._unwrapped_model.training:
            self._in_step = self._running
            seed_step(self._seed, self.step, "train")
        batch = batch.to(self.device, non_blocking=True)  # fairchem's loaders pin its memory
        with self._autocast(), self._gradients_local():
            outputs = super()._forward(batch)
        return {name: self._widened(value) for name, value in outputs.items()}

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    def _gradients_local(self) -> contextlib.AbstractContextManager:
        """For all but the last batch of an optimiser step: ranks sum what they accumulated once."""
        is_last = self.step % self._accumulate_steps == 0
        if self._in_step and not is_last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _widened(self, value: torch.Tensor) -> torch.Tensor:
        """Back to float32 what bf16 autocast left in bf16: losses and metrics are sums over many terms."""
        return value.float() if value.dtype == self._autocast_dtype else value

    def _agree(self, loss: torch.Tensor, batch: Batch) -> None:
        """Let all ranks know whether one of them has a bad loss, or received a signal."""
        self._batch = batch
        if not self._running:
            return
        finite = torch.isfinite(loss.detach())
        told = torch.stack([(~finite).long(), torch.full_like(finite, self._interruption.received, dtype=torch.long)])
        if distutils.initialized():
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        bad, self._signal = told.tolist()
        self._bad_loss = bool(bad)
        self._complaint = "another rank's loss is not finite" if finite else f"the loss is {loss.item()}"

    def _backward(self, loss: torch.Tensor) -> None:
        position = self.step % self._accumulate_steps
        if position == 1 or self._accumulate_steps == 1:
            self.optimizer.zero_grad()
            self._spoilt = False
        self._spoilt = self._spoilt or self._bad_loss
        if self._bad_loss:
            self._bad_steps.bad(self._complaint, self.step, self._batch)
        elif not self._spoilt and position != 0:
            (loss / self._accumulate_steps).backward()
        elif not self._spoilt:
            self._take_step(loss / self._accumulate_steps)
        if not self._schedule_follows():
            self._end_of_step()

    def _take_step(self, loss: torch.Tensor) -> None:
        try:
            with gradients_kept(self.optimizer):
                super()._backward(loss)
        except NonFiniteGradientError as error:
            self._bad_steps.bad(str(error), self.step, self._batch)
        else:
            self._bad_steps.good()

    def _before_optimizer_step(self, *_: Any) -> None:
        if is_left_out(self.optimizer):
            return
        norm = clip_gradients(list(self.model.parameters()), self._gradient_limit)
        if self.logger is not None and self._gradient_limit:
            self.logger.log({"grad_norm": norm}, step=self.step, split="train")

    def _schedule_follows(self) -> bool:
        """Whether fairchem's loop will call the scheduler in this step; `ReduceLROnPlateau` only with evaluations."""
        every = self.config["optim"].get("eval_every", len(self.train_loader))
        return self.scheduler.scheduler_type != "ReduceLROnPlateau" or self.step % every == 0

    def _end_of_step(self) -> None:
        """Let heirs see the finished step and obey signals, where every rank has finished the same one."""
        self._in_step = False
        if self.step % self._accumulate_steps:
            return
        self.finish_step(interrupted=self._signal != 0)
        if self._signal:
            number, self._signal = self._signal, 0
            self._interruption.hand_over(number)
            wait_for_others()


class _FollowedScheduler:
    """fairchem's scheduler, which ends every step of its loop, and what is to be done then."""

    def __init__(self, scheduler: Any, after: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def replace(self, scheduler: Any) -> None:
        """Go on with another scheduler."""
        self._scheduler = scheduler

    def step(self, *args: Any, **kwargs: Any) -> None:
        """fairchem's step, then ours."""
        self._scheduler.step(*args, **kwargs)
        self._after()
