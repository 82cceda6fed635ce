"""Corruption of training batches in the loader's workers, beside the model's work rather than in front of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from dens_plugin.fields import structure_name
from dens_plugin.objectives.base import Objective
from dens_plugin.objectives.noise import StructureRandom

if TYPE_CHECKING:
    from torch_geometric.data import Batch, Data


class HasEpoch(Protocol):
    """What knows the epoch: fairchem's sampler, which is told before the workers of an epoch start."""

    epoch: int


class FixedEpoch(NamedTuple):
    """The same epoch for ever."""

    epoch: int


@dataclass
class PreparingCollater:
    """Collates structures into a batch and lets the objective prepare it.

    Args:
        collate: fairchem's collate function.
        objective: what to train on.
        seed: the run's seed.
        epochs: what knows the epoch, from 0.
    """

    collate: Callable[[Sequence[Data]], Batch]
    objective: Objective
    seed: int
    epochs: HasEpoch

    def __call__(self, structures: Sequence[Data]) -> Batch:
        """The prepared batch of some structures."""
        require_like_structures(structures)
        return self.objective.prepare(self.collate(structures), StructureRandom(self.seed, self.epochs.epoch))


@dataclass
class AllFreeCollater:
    """Collates batches without fixed atoms, so that fairchem's `predict`, which leaves those out, leaves out none.

    Args:
        collate: fairchem's collate function.
    """

    collate: Callable[[Sequence[Data]], Batch]

    def __call__(self, structures: Sequence[Data]) -> Batch:
        """The batch of some structures."""
        batch = self.collate(structures)
        batch.fixed = torch.zeros_like(batch.fixed)
        return batch


def require_like_structures(structures: Sequence[Data]) -> None:
    """Raise ValueError for structures that cannot form a batch, since only some have a field."""
    fields = set(structures[0].keys())
    for structure in structures:
        differing = fields ^ set(structure.keys())
        if differing:
            raise ValueError(
                f"only some structures have `{min(differing)}`, as {structure_name(structure)} shows; all must, or none"
            )
