"""What the steps of a run did: kept where it was computed and read later, so that no step waits for a GPU.

Steps with a NaN or infinite loss or gradient are left out by all ranks together. A run ends after too many in a row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from dens_plugin.fields import names_of
from dens_plugin.objectives.base import Errors

if TYPE_CHECKING:
    from dens_plugin.fields import Identifiers


_REMEDY = (
    "lower optim.lr_initial or optim.clip_grad_norm and go on with --resume, or look at these structures with "
    "`dens data check`"
)


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


class Entry(NamedTuple):
    """A batch that went through the model and, where there is a norm, the optimiser step that it completed.

    Attributes:
        step: its number, from 1.
        names: of its structures.
        loss: () of all ranks' rows that this rank has.
        bad_loss: () bool, whether the loss of a rank was NaN or infinite.
        errors: by name, of this rank.
        norm: () of the gradient before clipping; None for a batch that only accumulates.
        bad_gradient: () bool, whether the gradient alone was why the step was left out; None without a norm.
        is_taken: () bool, whether the weights changed; None without a norm.
    """

    step: int
    names: Identifiers
    loss: torch.Tensor
    bad_loss: torch.Tensor
    errors: Mapping[str, Errors]
    norm: torch.Tensor | None = None
    bad_gradient: torch.Tensor | None = None
    is_taken: torch.Tensor | None = None

    def told(self) -> torch.Tensor:
        """(5,) float64 loss, bad loss, norm, bad gradient, taken; zero for what is not there."""
        values = (self.loss, self.bad_loss, self.norm, self.bad_gradient, self.is_taken)
        nothing = torch.zeros_like(self.loss, dtype=torch.float64)
        return torch.stack([nothing if value is None else value.detach().double() for value in values])


@dataclass
class Ledger:
    """Entries of the last steps, and sums since the last time that means were asked for.

    Args:
        bad_steps: counts steps that were left out, and ends the run after too many.
        device: of the trainer.
    """

    bad_steps: BadSteps
    device: torch.device
    _unread: list[Entry] = field(default_factory=list)
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)  # name -> (2,) float64 total and count

    def add(self, entry: Entry) -> None:
        """Note an entry; asks nothing."""
        self._unread.append(entry)
        one = torch.ones((), device=self.device)
        self._sum("loss", entry.loss, one, entry.bad_loss)
        if entry.norm is not None:
            self._sum("grad_norm", entry.norm, one, ~torch.isfinite(entry.norm))
        for name, errors in entry.errors.items():
            total = errors.total()
            self._sum(name, total, errors.number(), ~torch.isfinite(total))

    def _sum(self, name: str, total: torch.Tensor, count: torch.Tensor, left_out: torch.Tensor) -> None:
        pair = torch.stack([total.double(), count.double()])
        pair = torch.where(left_out, torch.zeros_like(pair), pair)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def settle(self) -> None:
        """Read what became of the steps since the last time, in one message from the device.

        Raises:
            FloatingPointError: after too many bad steps in a row, naming step and structures.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        told = torch.stack([entry.told() for entry in unread]).tolist()
        for entry, (loss, bad_loss, norm, bad_gradient, is_taken) in zip(unread, told, strict=True):
            if bad_loss:
                what = "another rank's loss is not finite" if math.isfinite(loss) else f"the loss is {loss}"
                self.bad_steps.bad(what, entry.step, names_of(entry.names))
            elif bad_gradient:
                self.bad_steps.bad(f"the norm of the gradient is {norm}", entry.step, names_of(entry.names))
            elif is_taken:
                self.bad_steps.good()

    def means(self) -> dict[str, float]:
        """Means of this rank over the steps since the last call; what has no rows is left out."""
        sums, self._sums = self._sums, {}
        pairs = torch.stack(list(sums.values())).tolist() if sums else []
        return {name: total / count for name, (total, count) in zip(sums, pairs, strict=True) if count}
