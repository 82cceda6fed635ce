"""Corruption of training batches in the loader's workers, beside the model's work rather than in front of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dens_plugin.fields import structure_name, structure_names
from dens_plugin.objectives.base import Objective
from dens_plugin.objectives.noise import StructureRandom

if TYPE_CHECKING:
    from torch.utils.data import DistributedSampler
    from torch_geometric.data import Batch, Data

_LABELS = ("energy", "forces", "stress")


@dataclass
class PreparingCollater:
    """Collates structures into a batch and lets the objective prepare it.

    The epoch is read from the sampler, which the host sets before it starts an epoch's workers, so that a worker knows
    it without being told.

    Args:
        collate: the host's collate function.
        objective: what to train on.
        seed: the run's seed.
        sampler: the host's, whose ``epoch`` counts from 0.
    """

    collate: Callable[[Sequence[Data]], Batch]
    objective: Objective
    seed: int
    sampler: DistributedSampler

    def __call__(self, structures: Sequence[Data]) -> Batch:
        """The prepared batch of some structures."""
        require_like_structures(structures)
        batch = self.collate(structures)
        require_finite_labels(batch)
        return self.objective.prepare(batch, StructureRandom(self.seed, self.sampler.epoch))


@dataclass
class AllFreeCollater:
    """Collates batches without fixed atoms, so that the host's `predict`, which leaves those out, leaves out none.

    Args:
        collate: the host's collate function.
    """

    collate: Callable[[Sequence[Data]], Batch]

    def __call__(self, structures: Sequence[Data]) -> Batch:
        """The batch of some structures."""
        batch = self.collate(structures)
        batch.fixed = torch.zeros_like(batch.fixed)
        return batch


def require_like_structures(structures: Sequence[Data]) -> None:
    """Raise ValueError for structures that cannot form a batch: other fields, or arrays of another number of atoms."""
    fields = set(structures[0].keys())
    for structure in structures:
        differing = fields ^ set(structure.keys())
        if differing:
            raise ValueError(
                f"only some structures have `{min(differing)}`, as {structure_name(structure)} shows; all must, or none"
            )
        for key in ("forces", "fixed", "tags", "atomic_numbers"):
            if key in structure and len(structure[key]) != len(structure.pos):
                raise ValueError(
                    f"`{key}` has {len(structure[key])} rows for {len(structure.pos)} atoms in "
                    f"{structure_name(structure)}; `dens data check` lists all such structures"
                )


def require_finite_labels(batch: Batch) -> None:
    """Raise ValueError for a label that is NaN or infinite, naming the structure."""
    for name in _LABELS:
        if name in batch and not torch.isfinite(batch[name]).all():
            raise ValueError(
                f"`{name}` of the training set is NaN or infinite in {_describe(batch, name)}; "
                "`dens data check` lists all such structures: remove them"
            )


def _describe(batch: Batch, name: str) -> str:
    rows = ~torch.isfinite(batch[name]).reshape(len(batch[name]), -1).all(dim=1)
    per_atom = len(batch[name]) == len(batch.batch) and len(batch.batch) != batch.num_graphs
    index = batch.batch[rows] if per_atom else rows.nonzero().view(-1)
    return structure_names(batch, index.unique().clamp(max=batch.num_graphs - 1).tolist())
