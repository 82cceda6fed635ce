"""The schedule: what fairchem would stumble over, and a resumed run by the settings of now where they were others."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairchem.core.models.equiformer_v2.trainers.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import LambdaLR

Group = dict[str, Any]
_PLATEAU = "ReduceLROnPlateau"
_OF_PLATEAU = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")  # what it has seen, as opposed to settings
_RATES = ("lr", "initial_lr")
_FACTORS = {"warmup_factor", "lr_min_factor", "decay_rate"}


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
    before: LRScheduler,
) -> LRScheduler:
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
    fresh = LRScheduler(optimizer, dict(optim))
    if fresh.scheduler_type == "Null":
        return fresh
    if fresh.scheduler_type == _PLATEAU:
        if saved.get("scheduler") == _PLATEAU:
            for name in _OF_PLATEAU:
                setattr(fresh.scheduler, name, getattr(before.scheduler, name))
            for group, share in zip(optimizer.param_groups, shrunk, strict=True):
                group["lr"] *= share
        return fresh
    with warnings.catch_warnings():  # that no optimiser has made a step between those of the schedule
        warnings.simplefilter("ignore")
        if isinstance(fresh.scheduler, LambdaLR):
            fresh.scheduler.last_epoch = step - 1
            fresh.scheduler.step()
        else:
            for _ in range(step):
                fresh.scheduler.step()
    return fresh
