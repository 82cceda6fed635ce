"""Steps with a NaN or infinite loss or gradient: all ranks leave them out, and stop after too many in a row."""

from __future__ import annotations

import logging
from typing import Any

_REMEDY = "lower optim.lr_initial or optim.clip_grad_norm, or look at these structures with `dens data check`"


class BadSteps:
    """Counts bad steps in a row.

    Args:
        limit: the most that are left out in a row; one more ends the run while its weights are good.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._taken = 0

    def good(self) -> None:
        """Note a step that was taken."""
        self._in_a_row = 0
        self._taken += 1

    def require_any(self) -> None:
        """Raise FloatingPointError if steps were left out and none was taken."""
        if self._in_a_row and not self._taken:
            raise FloatingPointError(
                f"all {self._in_a_row} steps were left out for a NaN, and nothing was trained: {_REMEDY}"
            )

    def bad(self, what: str, step: int, structures: str) -> None:
        """Note a step that was left out, and log the structures of this rank's batch.

        Raises:
            FloatingPointError: if there were too many in a row, naming step and structures.
        """
        self._in_a_row += 1
        told = f"{what} in step {step}, with {structures} in the batch"
        if self._in_a_row > self._limit:
            raise FloatingPointError(
                f"{told}, and {self._limit} bad steps before it; weights and checkpoint are still good: {_REMEDY}"
            )
        logging.warning(f"Left out a step: {told} ({self._in_a_row} in a row, at most {self._limit}).")


def bad_steps_allowed(optim: dict[str, Any]) -> int:
    """The number of ``optim.max_bad_steps``; raises ValueError for what is none."""
    limit = optim.get("max_bad_steps", 10)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ValueError(f"optim.max_bad_steps must be a whole number of at least 0, got {limit!r}")
    return limit
