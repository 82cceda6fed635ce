"""Batches filled up to so many atoms or edges, instead of holding so many structures.

Structures of an epoch are dealt to a fixed number of batches, the larger ones first and each to the batch that is
emptiest so far, so that all batches are about equally full and hold about as many structures. That number is the least
with which no batch is too full. It depends on sizes alone, so that all epochs, and all ranks, have as many batches;
which structures meet, and in which order, is a function of (seed, epoch). Very many structures are dealt in pools.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from fairchem.core.datasets.base_dataset import Subset
from torch.utils.data import BatchSampler

from dens_plugin.fields import structure_name

BATCH_ATOMS = "batch_atoms"  # keys of ``optim``
BATCH_EDGES = "batch_edges"
_FIELDS = {BATCH_ATOMS: "natoms", BATCH_EDGES: "neighbors"}  # of metadata.npz
_NAMES = {BATCH_ATOMS: "atoms", BATCH_EDGES: "edges"}
_POOL = 65536  # structures that are dealt together
_SPARE = 0.01  # of a batch, for pools of other structures than those that the number of batches was tried on
_FULL = 1 + 1e-9  # shares of a batch, whose sum is rounded
_SHUFFLE = 0.05  # by how much sizes may differ for structures to change places


@dataclass(frozen=True)
class Deal:
    """Which batch each structure of a pool is in.

    Attributes:
        batches: (n,) numbers below that of the batches.
        fullest: the share of its room that the fullest batch takes.
    """

    batches: np.ndarray
    fullest: float

    @classmethod
    def of(cls, costs: np.ndarray, number: int, order: np.ndarray) -> Deal:
        """Deal structures in an order, each to the emptiest of so many batches.

        Args:
            costs: (n,) shares of a batch.
            number: of batches.
            order: (n,) of structures.
        """
        batches = np.empty(len(costs), dtype=np.int64)
        heap = [(0.0, batch) for batch in range(number)]
        for structure, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
            load, batch = heap[0]
            batches[structure] = batch
            heapq.heapreplace(heap, (load + cost, batch))
        return cls(batches, max(load for load, _ in heap))


class FilledBatches(BatchSampler):
    """Batches of one rank. Every structure is in one batch of an epoch, and every rank has equally many batches.

    Args:
        costs: (N,) what share of a batch each structure takes.
        seed: of the run.
        rank: of this process.
        num_replicas: number of processes that share the set.

    Raises:
        ValueError: for fewer structures than ranks, or so large ones that one rank would have more than its share.
    """

    def __init__(self, costs: np.ndarray, *, seed: int, rank: int, num_replicas: int) -> None:
        if len(costs) < num_replicas:
            raise ValueError(f"{len(costs)} training structures are fewer than {num_replicas} ranks; take fewer ranks")
        self._costs, self._seed, self._rank, self._ranks = costs, seed, rank, num_replicas
        self.epoch, self._start = 0, 0
        self._pools = -(-len(costs) // _POOL)
        self._number = self._least_number()  # of batches in a pool, of all ranks

    @property
    def sampler(self) -> FilledBatches:
        """What knows the epoch, which for fairchem's batches is another object."""
        return self

    @property
    def filled(self) -> float:
        """The mean share of a batch that structures take."""
        return float(self._costs.sum()) / (self._pools * self._number)

    def set_epoch_and_start_iteration(self, epoch: int, start_iteration: int) -> None:
        """Go to a batch of an epoch."""
        self.epoch, self._start = epoch, start_iteration

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.set_epoch_and_start_iteration(epoch, 0)

    def __len__(self) -> int:
        return self._pools * self._number // self._ranks

    def __iter__(self) -> Iterator[list[int]]:
        of_pool, members = self._number // self._ranks, self._members()
        for pool in range(self._start // of_pool, self._pools):
            yield from self._dealt(members[pool], pool)[max(self._start - pool * of_pool, 0) :]

    def _dealt(self, members: np.ndarray, pool: int) -> list[list[int]]:
        """This rank's batches of a pool of the current epoch."""
        costs = self._costs[members]
        random = np.random.default_rng([self._seed, self.epoch, pool])
        deal = Deal.of(costs, self._number, _order(costs * np.exp(_SHUFFLE * random.standard_normal(len(costs)))))
        if deal.fullest > _FULL:
            deal = Deal.of(costs, self._number, _order(costs))
        by_batch = np.split(members[np.argsort(deal.batches, kind="stable")], np.bincount(deal.batches).cumsum()[:-1])
        own = random.permutation(self._number)[self._rank :: self._ranks]
        return [by_batch[batch].tolist() for batch in own]

    def _members(self) -> list[np.ndarray]:
        """(n,) the structures of each pool in the current epoch."""
        shuffled = np.random.default_rng([self._seed, self.epoch]).permutation(len(self._costs))
        return np.array_split(shuffled, self._pools)

    def _least_number(self) -> int:
        """The least number of batches that are not too full, a multiple of the ranks'."""
        costs = self._costs[self._members()[0]]
        room = _FULL if self._pools == 1 else 1 - _SPARE
        ranks, order, most = self._ranks, _order(costs), len(costs) // self._ranks * self._ranks
        number = min(max(-(-int(np.ceil(costs.sum() / room)) // ranks), 1) * ranks, most)
        while Deal.of(costs, number, order).fullest > room:
            if number == most:
                raise ValueError(
                    f"{len(costs)} structures that fill a batch each cannot be shared out to {ranks} ranks; raise "
                    f"optim.{BATCH_ATOMS} or optim.{BATCH_EDGES}"
                )
            number = min(number + max(number // 200 // ranks, 1) * ranks, most)
        return number


def fills(optim: dict[str, Any]) -> bool:
    """Whether batches are filled up by ``optim.batch_atoms`` or ``optim.batch_edges``."""
    return any(key in optim for key in _FIELDS)


def filled_batches(dataset: Any, optim: dict[str, Any], *, seed: int, rank: int, num_replicas: int) -> FilledBatches:
    """The batches of a training set.

    Args:
        dataset: with the sizes of its structures in ``metadata.npz``.
        optim: the block, with the most atoms or edges of a batch.
        seed: of the run.
        rank: of this process.
        num_replicas: number of processes that share the set.

    Raises:
        ValueError: without sizes, or for a structure that is larger than a batch.
    """
    shares = [_sizes(dataset, key) / _room(dataset, optim, key) for key in _FIELDS if key in optim]
    batches = FilledBatches(np.max(shares, axis=0), seed=seed, rank=rank, num_replicas=num_replicas)
    logging.info(
        f"Batches are filled up: {len(batches)} for each rank and epoch, of about "
        f"{len(dataset) / (len(batches) * num_replicas):.1f} structures, {batches.filled:.1%} full on average."
    )
    return batches


def _sizes(dataset: Any, key: str) -> np.ndarray:
    """(N,) numbers of atoms or edges."""
    if isinstance(dataset, Subset):
        return _sizes(dataset.dataset, key)[np.asarray(dataset.indices)]
    field = _FIELDS[key]
    if not dataset.metadata_hasattr(field):
        hint = "`dens data` writes it" if key == BATCH_ATOMS else f"without it take optim.{BATCH_ATOMS}"
        raise ValueError(
            f"optim.{key} needs `{field}`, the {_NAMES[key]} of each structure, in the training set's metadata.npz; "
            f"{hint}"
        )
    return np.asarray(dataset._metadata[field])


def _room(dataset: Any, optim: dict[str, Any], key: str) -> int:
    """The most atoms or edges of a batch, which no structure exceeds."""
    most, sizes = optim[key], _sizes(dataset, key)
    largest = int(sizes.argmax())
    if sizes[largest] > most:
        name = structure_name(dataset[largest])
        raise ValueError(
            f"structure {largest} of the training set{f' ({name})' if name else ''} has {sizes[largest]} "
            f"{_NAMES[key]}, and optim.{key} is {most}: raise it, or leave out large structures by "
            "dataset.train.max_atoms"
        )
    return most


def _order(costs: np.ndarray) -> np.ndarray:
    """(n,) the largest first."""
    return np.argsort(-costs, kind="stable")
