"""Loaders: the order of an epoch, batches that an objective prepares, and their neighbours, in a loader's workers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from fairchem.core.common.data_parallel import StatefulDistributedSampler
from fairchem.core.models.base import HydraModel

from dens_plugin.backbones.description import describe
from dens_plugin.backbones.neighbours import Search, read_or_find, with_neighbours
from dens_plugin.fields import structure_name
from dens_plugin.objectives.base import Objective
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.settings import switch

if TYPE_CHECKING:
    from torch import nn
    from torch_geometric.data import Batch, Data


_CHUNK = 4096


class EpochOrder(StatefulDistributedSampler):
    """fairchem's sampler with the same numbers in the same order, and no Python list of the whole set on every rank.

    For 170 million structures such a list takes 6 GB, on each of a node's eight ranks.
    """

    @classmethod
    def of(cls, sampler: StatefulDistributedSampler) -> EpochOrder:
        """The same as a sampler of fairchem's."""
        return cls(
            sampler.dataset,
            batch_size=sampler.batch_size,
            num_replicas=sampler.num_replicas,
            rank=sampler.rank,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
            drop_last=sampler.drop_last,
        )

    def __iter__(self) -> Iterator[int]:
        own = self._share()[self.start_iter * self.batch_size :]
        for chunk in own.split(_CHUNK):
            yield from chunk.tolist()

    def _share(self) -> torch.Tensor:
        """(n,) this rank's structures of the epoch; the first ones again where ranks must be filled up."""
        size = len(self.dataset)
        positions = (self.rank + self.num_replicas * torch.arange(self.num_samples)) % size
        if not self.shuffle:
            return positions
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(size, generator=generator)[positions]


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


# fairchem's local launch of several ranks resets `num_workers` to 0 and leaves this key alone.
LOADER_WORKERS = "loader_workers"
LOADER_GRAPH = "loader_graph"  # key of ``optim``, as is the next one
PAD = "pad"


@dataclass
class NeighbourCollater:
    """Collates structures into a batch with its neighbours.

    Args:
        collate: gives a batch whose positions are final.
        search: what to look for.
    """

    collate: Callable[[Sequence[Data]], Batch]
    search: Search

    def __call__(self, structures: Sequence[Data]) -> Batch:
        """The batch of some structures, with the edges between them."""
        return with_neighbours(self.collate(structures), self.search)


def loader_search(model: nn.Module, optim: Mapping[str, Any]) -> Search | None:
    """What the loader should look for, after which the model reads it; None if the model does so itself.

    That is the case with ``optim.loader_graph: false``; by default for a model on a GPU without workers, where it would
    wait for a CPU; and, with a message, for models that this is not exact for or was not tried with. On a CPU the
    loader's search is several times faster than fairchem's, with workers or without.

    Args:
        model: without DDP around it; afterwards it reads the neighbours of batches that have them.
        optim: the config's block.

    Raises:
        ValueError: for something else than true or false, or where batches shall be padded, which needs a record.
    """
    wanted = True if is_padded(optim) else optim.get(LOADER_GRAPH)
    if not (_gains(model, optim) if wanted is None else switch(wanted, f"optim.{LOADER_GRAPH}")):
        return None
    known = describe(model)
    if known.search is None and is_padded(optim):
        raise ValueError(
            f"optim.pad needs neighbours that the loader finds, and here the model does so: {known.own_search}; "
            "leave optim.pad out"
        )
    if known.search is None or (known.own_search and not wanted):
        level = logging.WARNING if wanted else logging.INFO
        logging.log(level, f"Neighbours are found by the model: {known.own_search}.")
        return None
    backbone = model.backbone if isinstance(model, HydraModel) else model
    # An attribute of this one object: the classes are fairchem's, and a subclass of each would say the same three times
    backbone.generate_graph = functools.partial(read_or_find, backbone, backbone.generate_graph)
    return known.search


def is_padded(optim: Mapping[str, Any]) -> bool:
    """Whether loaders pad batches to a few sizes, by ``optim.pad``."""
    return switch(optim.get(PAD, False), f"optim.{PAD}")


def _gains(model: nn.Module, optim: Mapping[str, Any]) -> bool:
    workers = optim.get(LOADER_WORKERS, optim.get("num_workers", 0))
    return workers > 0 or next(model.parameters()).device.type == "cpu"
