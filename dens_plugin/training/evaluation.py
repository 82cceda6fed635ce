"""Exact means over a validation set on any number of ranks.

fairchem pads a set until all ranks have equally many structures, and counts what it padded. Here ranks take unequal
shares, the model runs without DDP, whose forward needs all ranks, and sums and counts meet once at the end.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, NamedTuple

import torch
from fairchem.core.common import distutils
from torch.utils.data import BatchSampler

from dens_plugin.training.losses import Term


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
    """fairchem's running metrics summed over ranks, of which some may lack some or all of them."""
    shares = _gathered({name: (_number(value["total"]), _number(value["numel"])) for name, value in metrics.items()})
    names = sorted(set().union(*shares))
    return {name: _joined(name, shares) for name in names}


def _joined(name: str, shares: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    total, numel = (sum(share.get(name, (0, 0))[part] for share in shares) for part in (0, 1))
    return {"total": total, "numel": numel, "metric": total / numel}


def _gathered(value: Any) -> list[Any]:
    if not distutils.initialized():
        return [value]
    found: list[Any] = [None] * distutils.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def _number(value: Any) -> float:
    return value.item() if isinstance(value, torch.Tensor) else value
