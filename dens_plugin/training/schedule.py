"""The schedule: fairchem's and two of the relatives', and a resumed run by the settings of now where they were others.

``lambda_type: held_cosine`` is a linear warm-up, ``hold_epochs`` at the full rate and a cosine from there to the end
(denoise pre-training, arXiv:2303.02216); fairchem's ``cosine`` begins at step 0 and goes on after the warm-up.
``ReduceLROnPlateau`` takes ``warmup_epochs`` and ``warmup_factor``, as TorchMD-NET's runs do.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairchem.core.models.equiformer_v2.trainers.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

Group = dict[str, Any]
_PLATEAU = "ReduceLROnPlateau"
_HELD = "held_cosine"
_OF_PLATEAU = (
    "best",
    "num_bad_epochs",
    "cooldown_counter",
    "last_epoch",
    "steps_taken",
)  # what it has seen, as opposed to settings
_RATES = ("lr", "initial_lr")
_FACTORS = {"warmup_factor", "lr_min_factor", "decay_rate"}


class Schedule(LRScheduler):
    """fairchem's, and those of the relatives.

    Args:
        optimizer: whose learning rates it sets.
        optim: the config's block, with what is counted in epochs as numbers of steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, optim: Mapping[str, Any]) -> None:
        # torch warns of a schedule that steps before its optimiser has. Here it steps after every batch, also after
        # the first of several that are accumulated and after a bad one, and the loop has the order right.
        optimizer._opt_called = True  # type: ignore[attr-defined]
        options = optim["scheduler_params"]
        is_held = optim["scheduler"] == "LambdaLR" and options["lambda_type"] == _HELD
        if not is_held and optim["scheduler"] != _PLATEAU:
            super().__init__(optimizer, dict(optim))
            return
        super().__init__(optimizer, {**optim, "scheduler": "Null"})
        self.scheduler_type, self.scheduler_params = optim["scheduler"], dict(options)
        if is_held:
            self.lambda_type = _HELD
            self.scheduler = LambdaLR(optimizer, HeldCosine(options))
        else:
            accepted = inspect.signature(WarmedPlateau).parameters.keys() & options.keys()
            self.scheduler = WarmedPlateau(optimizer, **{name: options[name] for name in accepted})

    def step(self, metrics: float | None = None, epoch: int | None = None) -> None:
        """After a step; a plateau has two kinds of them: those of the optimiser, and evaluations with their metric."""
        if self.scheduler_type == _PLATEAU and metrics is None:
            self.scheduler.after_step()
        else:
            super().step(metrics, epoch)


class HeldCosine:
    """The share of the learning rate at a step.

    Args:
        options: ``warmup_epochs``, ``hold_epochs`` and ``epochs`` in steps, ``warmup_factor``, ``lr_min_factor``.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.warmup, self.hold, self.steps = (options[name] for name in ("warmup_epochs", "hold_epochs", "epochs"))
        self.first, self.least = options["warmup_factor"], options["lr_min_factor"]

    def __call__(self, step: int) -> float:
        """From ``first`` up to 1, and down to ``least``."""
        if step < self.warmup:
            return _risen(step, self.warmup, self.first)
        falling = max(1, self.steps - self.warmup - self.hold)
        share = min(1.0, max(0, step - self.warmup - self.hold) / falling)
        return self.least + 0.5 * (1 - self.least) * (1 + math.cos(math.pi * share))


class WarmedPlateau(ReduceLROnPlateau):
    """torch's, after a linear warm-up, in which evaluations do not count. Its state has how many steps were taken.

    Args:
        optimizer: whose learning rates it sets.
        warmup_epochs: in steps.
        warmup_factor: the share of the learning rate at the start.
        factor: and the others, of torch's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
        warmup_epochs: int = 0,
        warmup_factor: float = 0.0,
    ) -> None:
        super().__init__(optimizer, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps)
        self.warmup, self.first, self.steps_taken = warmup_epochs, warmup_factor, 0
        self.stated = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self._rise()

    def after_step(self) -> None:
        """Count a step of the optimiser."""
        self.steps_taken += 1
        self._rise()

    def step(self, metrics: Any, epoch: int | None = None) -> None:
        """After an evaluation."""
        if self.steps_taken >= self.warmup:
            super().step(metrics, epoch)

    def start(self, step: int, shares: Sequence[float]) -> None:
        """Be where so many steps lead to; after the warm-up, to a share of the stated rate of each group."""
        self.steps_taken = step
        for group, rate, share in zip(self.optimizer.param_groups, self.stated, shares, strict=True):
            group["lr"] = rate * share
        self._rise()

    def _rise(self) -> None:
        if self.steps_taken <= self.warmup and self.warmup:
            for group, rate in zip(self.optimizer.param_groups, self.stated, strict=True):
                group["lr"] = rate * _risen(self.steps_taken, self.warmup, self.first)


def _risen(step: int, warmup: int, first: float) -> float:
    share = step / warmup
    return first * (1 - share) + share


def suit_schedule(optim: dict[str, Any], steps_per_epoch: int) -> None:
    """Make the warm-up at least one step long, whose steps fairchem rounds down and divides by, and factors floats."""
    schedule = optim.get("scheduler_params", {})
    for name in _FACTORS & schedule.keys():
        schedule[name] = float(schedule[name])  # fairchem refuses whole numbers, as 1
    warmup = schedule.get("warmup_epochs", 1)
    if warmup * steps_per_epoch < 1:
        logging.warning(
            f"optim.scheduler_params.warmup_epochs = {warmup} is less than a step; the warm-up takes one step"
        )
        schedule["warmup_epochs"] = 1.000001 / steps_per_epoch


def stated_groups(optimizer: torch.optim.Optimizer) -> list[Group]:
    """The settings of a new optimiser's groups, by the config alone."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def take_settings(optimizer: torch.optim.Optimizer, stated: Sequence[Group]) -> None:
    """Give the groups of an optimiser that loaded a state the settings of the config, but for the learning rate."""
    for group, own in zip(optimizer.param_groups, stated, strict=True):
        group.update({name: value for name, value in own.items() if name not in _RATES})
        if group.get("amsgrad"):  # turned on: the largest second moment so far is that of now
            for state in (optimizer.state[parameter] for parameter in group["params"]):
                if "exp_avg_sq" in state:
                    state.setdefault("max_exp_avg_sq", state["exp_avg_sq"].clone())


def schedule_at(
    step: int,
    optimizer: torch.optim.Optimizer,
    stated: Sequence[Group],
    optim: Mapping[str, Any],
    *,
    saved: Mapping[str, Any],
    before: Schedule,
) -> Schedule:
    """A new schedule by the config, where the run has got to; the learning rate is that of this step.

    Args:
        step: that was taken last.
        optimizer: whose learning rate it sets.
        stated: of `stated_groups`.
        optim: the config's block.
        saved: the same of the checkpoint.
        before: the schedule of the checkpoint; a plateau's reductions are kept, in proportion.
    """
    shrunk = [group["lr"] / float(saved.get("lr_initial", group["lr"])) for group in optimizer.param_groups]
    for group, own in zip(optimizer.param_groups, stated, strict=True):
        group["lr"] = group["initial_lr"] = own.get("initial_lr", own["lr"])
    fresh = Schedule(optimizer, optim)
    if fresh.scheduler_type == "Null":
        return fresh
    if fresh.scheduler_type == _PLATEAU:
        if saved.get("scheduler") == _PLATEAU:
            for name in _OF_PLATEAU:
                setattr(fresh.scheduler, name, getattr(before.scheduler, name))
            fresh.scheduler.start(step, shrunk)
        else:
            fresh.scheduler.start(step, [1.0] * len(shrunk))
        return fresh
    if isinstance(fresh.scheduler, LambdaLR):
        fresh.scheduler.last_epoch = step - 1
        fresh.scheduler.step()
    else:
        for _ in range(step):
            fresh.scheduler.step()
    return fresh
