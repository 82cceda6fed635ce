"""Validation: exact means on any number of ranks, and the errors of an objective on a corrupted copy of the set.

fairchem pads a set until all ranks have equally many structures, and counts what it padded. Here ranks take unequal
shares, the model runs without DDP, whose forward needs all ranks, and sums and counts meet once at the end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from fairchem.core.common import distutils
from torch.utils.data import BatchSampler

from dens_plugin.fields import rows_of
from dens_plugin.objectives.base import Errors
from dens_plugin.training.losses import Term

if TYPE_CHECKING:
    from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
    from torch_geometric.data import Batch

    from dens_plugin.objectives.base import Objective, Outputs


_HIGHER_IS_BETTER = ("cosine_similarity", "within_threshold")


class ShareSampler(BatchSampler):
    """Batches of one rank's share of a data set: of R ranks each takes every R-th structure, and all are taken once.

    Args:
        dataset: of any length.
        batch_size: structures per batch.
        rank: of this process.
        num_replicas: number of processes that share the set.
    """

    def __init__(self, dataset: Sized, *, batch_size: int, rank: int, num_replicas: int) -> None:
        super().__init__(range(rank, len(dataset), num_replicas), batch_size, drop_last=False)


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a metric's value is better than the best so far, None before the first. Lower errors are better.

    A value that is NaN or infinite is never the best.
    """
    if best is None or not math.isfinite(best) or not math.isfinite(value):
        return math.isfinite(value)
    return value > best if any(word in metric for word in _HIGHER_IS_BETTER) else value < best


@contextlib.contextmanager
def averaged(averages: ExponentialMovingAverage | None) -> Iterator[None]:
    """Within the context the model has its averaged weights, where there are some."""
    if averages is None:
        yield
        return
    averages.store()
    averages.copy_to()
    try:
        yield
    finally:
        averages.restore()


class MeanLoss:
    """The loss of a whole set: for each target a coefficient times sum over count, of all batches and ranks."""

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}

    def add(self, terms: list[Term]) -> torch.Tensor:
        """Add the terms of a batch; returns the loss of this batch alone."""
        for index, term in enumerate(terms):
            own = _Part(term.coefficient, term.errors.sum().item(), term.count.item())
            self._parts[index] = own.joined(self._parts.get(index))
        return sum(term.coefficient * term.errors.sum() / term.count.clamp(min=1) for term in terms)

    def value(self) -> float:
        """The loss of all that was added on all ranks, each of which must call this."""
        whole: dict[int, _Part] = {}
        for parts in _gathered(self._parts):
            whole |= {index: part.joined(whole.get(index)) for index, part in parts.items()}
        return sum(part.coefficient * part.total / max(part.count, 1) for part in whole.values())


class _Part(NamedTuple):
    """One target's share of a loss."""

    coefficient: float
    total: float
    count: int

    def joined(self, other: _Part | None) -> _Part:
        return self if other is None else _Part(self.coefficient, self.total + other.total, self.count + other.count)


def summed(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """fairchem's running metrics summed over ranks, which may lack some; metrics without numbers are left out."""
    shares = _gathered({name: (_number(value["total"]), _number(value["numel"])) for name, value in metrics.items()})
    names = sorted(set().union(*shares))
    return {name: joined for name in names if (joined := _joined(name, shares))["numel"]}


def _joined(name: str, shares: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    total, numel = (sum(share.get(name, (0, 0))[part] for share in shares) for part in (0, 1))
    return {"total": total, "numel": numel, "metric": total / max(numel, 1)}


def _gathered(value: Any) -> list[Any]:
    if not distutils.initialized():
        return [value]
    found: list[Any] = [None] * distutils.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def _number(value: Any) -> float:
    return value.item() if isinstance(value, torch.Tensor) else value


class ObjectiveErrors:
    """Sums of an objective's errors over the batches of a corrupted validation set.

    Of each output of its own: ``{name}_relative``, the mean norm of the error over that of the target: 1 is what
    predicting zero has. And the objective's metrics, or ``{name}_mae`` in units of the loss where it has none.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, outputs: Outputs, physical: Outputs, batch: Batch) -> None:
        """Add a batch: its outputs as the loss compares them, and in physical units."""
        predictions, targets = self._objective.predictions(outputs, batch), self._objective.targets(batch)
        metrics = self._objective.metrics(physical, batch)
        for output in self._objective.outputs:
            mask, target = rows_of(batch)[output.name].mask, targets[output.name]
            error = predictions[output.name] - target
            norms = (Errors(value.norm(dim=-1), mask).total() for value in (error, target))
            self._sum(f"{output.name}_relative", *norms)
            metrics.setdefault(f"{output.name}_mae", Errors(error.abs(), mask))
        for name, errors in metrics.items():
            self._sum(name, errors.total(), errors.number())

    def _sum(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (before[0] + total.item(), before[1] + count.item())

    def totals(self) -> dict[str, dict[str, float]]:
        """As fairchem keeps metrics: name -> total and numel, of this rank."""
        return {name: {"total": total, "numel": count} for name, (total, count) in self._sums.items()}
