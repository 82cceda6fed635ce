"""What the steps of a run did: kept where it was computed and read later, so that no step waits for a GPU.

Steps with a NaN or infinite loss or gradient are left out by all ranks together. A run ends after too many in a row.
"""

from __future__ import annotations

import itertools
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

    def figures(self) -> Figures:
        """The same as numbers."""
        values = (self.loss, self.bad_loss, self.norm, self.bad_gradient, self.is_taken)
        told = [_double(value, like=self.loss) for value in values]
        told += [each.double() for errors in self.errors.values() for each in (errors.total(), errors.number())]
        return Figures(self.step, self.names, tuple(self.errors), self.norm is not None, torch.stack(told))


class Figures(NamedTuple):
    """The numbers of an entry, in one tensor.

    Attributes:
        step: as of the entry.
        names: as of the entry.
        errors: their names.
        is_last: whether the batch completed an optimiser step.
        values: (5 + 2n,) float64 loss, bad loss, norm, bad gradient, taken, zero for what is not there; then of each of
            n errors the total and the number.
    """

    step: int
    names: Identifiers
    errors: tuple[str, ...]
    is_last: bool
    values: torch.Tensor

    def sums(self) -> tuple[tuple[str, ...], torch.Tensor]:
        """Names of what is averaged over steps, and (n, 2) totals and numbers; zero where a total is not finite."""
        one = torch.ones_like(self.values[0])
        pairs = [self.values[0], one, *([self.values[2], one] if self.is_last else []), *self.values[5:]]
        names = ("loss", *(("grad_norm",) if self.is_last else ()), *self.errors)
        table = torch.stack(pairs).view(-1, 2)  # (n, 2)
        left_out = ~torch.isfinite(table[:, 0])
        left_out[0] |= self.values[1] > 0
        return names, torch.where(left_out[:, None], 0.0, table)


def _double(value: torch.Tensor | None, *, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like, dtype=torch.float64) if value is None else value.detach().double()


@dataclass
class Ledger:
    """Entries of the last steps, and sums since the last time that means were asked for.

    Args:
        bad_steps: counts steps that were left out, and ends the run after too many.
    """

    bad_steps: BadSteps
    _unread: list[Figures] = field(default_factory=list)
    _sums: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)  # n names -> (n, 2) totals and numbers

    def add(self, entry: Entry) -> None:
        """Note an entry; asks nothing."""
        self.note(entry.figures())

    def note(self, figures: Figures) -> None:
        """Note what an entry is in numbers; asks nothing."""
        self._unread.append(figures)
        names, table = figures.sums()
        self._sums[names] = self._sums[names] + table if names in self._sums else table

    def settle(self) -> None:
        """Read what became of the steps since the last time, in one message from the device.

        Raises:
            FloatingPointError: after too many bad steps in a row, naming step and structures.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        told = torch.stack([figures.values[:5] for figures in unread]).tolist()
        for figures, (loss, bad_loss, norm, bad_gradient, is_taken) in zip(unread, told, strict=True):
            if bad_loss:
                what = "another rank's loss is not finite" if math.isfinite(loss) else f"the loss is {loss}"
                self.bad_steps.bad(what, figures.step, names_of(figures.names))
            elif bad_gradient:
                self.bad_steps.bad(f"the norm of the gradient is {norm}", figures.step, names_of(figures.names))
            elif is_taken:
                self.bad_steps.good()

    def means(self) -> dict[str, float]:
        """Means of this rank over the steps since the last call; what has no rows is left out."""
        sums, self._sums = self._sums, {}
        pairs = torch.cat(list(sums.values())).tolist() if sums else []
        whole: dict[str, tuple[float, float]] = {}
        for name, (total, count) in zip(itertools.chain(*sums), pairs, strict=True):
            before = whole.get(name, (0.0, 0.0))
            whole[name] = before[0] + total, before[1] + count
        return {name: total / count for name, (total, count) in whole.items() if count}
