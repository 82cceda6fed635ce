"""Options of ``optim`` that fairchem would stumble over: workers of local ranks, and a warm-up shorter than a step."""

from __future__ import annotations

import logging
from typing import Any

# fairchem's local launch of several ranks resets `num_workers` to 0 and leaves this key alone.
LOADER_WORKERS = "loader_workers"

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
