"""Whether a checkpoint leaves anything to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FINISHED = "nothing is trained; raise optim.max_epochs to go on, or start another run from it by task.warm_start"


def is_finished(checkpoint: Mapping[str, Any], optim: Mapping[str, Any]) -> bool:
    """Whether the run of a checkpoint has done all of ``optim.max_epochs``."""
    return checkpoint.get("epoch", 0) >= optim["max_epochs"]
