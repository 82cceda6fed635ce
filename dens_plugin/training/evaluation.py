"""Exact means over a validation set on any number of ranks.

fairchem pads a set until all ranks have equally many structures, and counts what it padded. Here ranks take unequal
shares, the model runs without DDP, whose forward needs all ranks, and sums and counts meet once at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from fairchem.core.common import distutils
from torch.utils.data import BatchSampler

from dens_plugin.training.losses import Term

if TYPE_CHECKING:
    from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage

_HIGHER_IS_BETTER = ("cosine_similarity", "within_threshold")


class ShareSampler(BatchSampler):
    """Batches of one rank's share of a data set: every so manyth structure, none twice, none missing.

    Args:
        dataset: of any length.
        batch_size: structures per batch.
        rank: of this process.
        num_replicas: number of processes that share the set.
    """

    def __init__(self, dataset: Sized, *, batch_size: int, rank: int, num_replicas: int) -> None:
        super().__init__(range(rank, len(dataset), num_replicas), batch_size, drop_last=False)


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a metric's value beats the best so far; None where there is none. Errors are better if they are lower."""
    if best is None:
        return True
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
    """fairchem's running metrics summed over ranks, some of which may lack some or all; without those of nothing."""
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
