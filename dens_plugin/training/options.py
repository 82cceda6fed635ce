"""Options of ``optim`` about how a step is made: precision, accumulation, warm-up."""

from __future__ import annotations

import logging
from typing import Any

import torch

# fairchem's local launch of several ranks resets `num_workers` to 0 and leaves this key alone.
LOADER_WORKERS = "loader_workers"

_FACTORS = {"warmup_factor", "lr_min_factor", "decay_rate"}


def autocast_dtype(config: dict[str, Any]) -> torch.dtype | None:
    """The type of ``optim.autocast``; raises ValueError for what does not exist or contradicts ``--amp``."""
    wanted = config["optim"].get("autocast")
    if wanted is None:
        return None
    if wanted != "bf16":
        raise ValueError(f"optim.autocast must be 'bf16' or left out, got '{wanted}'; fp16 is fairchem's --amp")
    if config["amp"]:
        raise ValueError("optim.autocast: bf16 and --amp (fp16) exclude each other; drop one of them")
    return torch.bfloat16


def accumulate_steps(optim: dict[str, Any]) -> int:
    """Batches per optimiser step, with every checkpoint at the end of one, so that no gradient is lost on resuming."""
    steps = optim.get("accumulate_steps", 1)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"optim.accumulate_steps must be a whole number of at least 1, got {steps!r}")
    for key in ("eval_every", "checkpoint_every"):
        every = optim.get(key, steps)
        if every > 0 and every % steps:
            raise ValueError(f"optim.{key} = {every} must be a multiple of optim.accumulate_steps = {steps}")
    return steps


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
