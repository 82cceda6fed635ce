"""The order of an epoch's structures, fairchem's, without a Python list of the whole data set on every rank.

fairchem's sampler turns the epoch's permutation into a list before it takes a rank's share: 170 million structures are
6 GB on each of a node's eight ranks, and a resumed run walks through those it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fairchem.core.common.data_parallel import StatefulDistributedSampler

_CHUNK = 4096


class EpochOrder(StatefulDistributedSampler):
    """fairchem's sampler with the same numbers in the same order."""

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
