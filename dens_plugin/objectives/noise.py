"""Random numbers of a structure as a pure function of (seed, epoch, structure), and the scales of Gaussian noise.

All draws of a structure are made at once and in one order, whatever the objective then uses of them, so that changing
one setting does not reshuffle the rest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch_geometric.data import Batch


class Draws(NamedTuple):
    """Everything random about a batch.

    Attributes:
        coin: (B,) uniform in [0, 1), decides whether a structure is corrupted.
        level: (B,) uniform in [0, 1), picks a structure's noise level.
        atom: (N,) uniform in [0, 1), decides which atoms are corrupted.
        normal: (N, 3) standard normal, the noise before scaling.
    """

    coin: torch.Tensor
    level: torch.Tensor
    atom: torch.Tensor
    normal: torch.Tensor


@dataclass(frozen=True)
class StructureRandom:
    """The source of randomness of one epoch; holds no state.

    Args:
        seed: the run's seed.
        epoch: the epoch, from 0.
    """

    seed: int
    epoch: int

    def draws(self, batch: Batch) -> Draws:
        """All random numbers of a batch, the same however its structures are batched, ordered or sharded."""
        drawn = [
            self._structure_draws(key, natoms)
            for key, natoms in zip(structure_keys(batch), batch.natoms.tolist(), strict=True)
        ]
        joined = Draws(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
        return Draws(*(value.to(batch.pos) for value in joined))

    def _structure_draws(self, key: bytes, natoms: int) -> Draws:
        digest = hashlib.blake2b(f"{self.seed},{self.epoch},".encode() + key, digest_size=4).digest()
        # Four bytes: torch's CPU generator starts from 32 bits of a seed and ignores the rest.
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return Draws(
            coin=torch.rand(1, generator=generator, dtype=torch.float64),
            level=torch.rand(1, generator=generator, dtype=torch.float64),
            atom=torch.rand(natoms, generator=generator, dtype=torch.float64),
            normal=torch.randn(natoms, 3, generator=generator, dtype=torch.float64),
        )


def structure_keys(batch: Batch) -> list[bytes]:
    """An identity for each structure that no batching, sharding or file layout can change.

    It is made of the elements and positions before corruption, with ``sid`` and ``fid`` where the data has them, so it
    also works for data sets without identifiers.
    """
    pos, numbers = batch.pos.detach().cpu().numpy(), batch.atomic_numbers.cpu().long().numpy()
    names = zip(_identifiers(batch, "sid"), _identifiers(batch, "fid"), strict=True)
    starts = batch.ptr.tolist()
    return [
        hashlib.blake2b(
            pos[start:end].tobytes() + numbers[start:end].tobytes() + f"{sid}_{fid}".encode(), digest_size=16
        ).digest()
        for start, end, (sid, fid) in zip(starts[:-1], starts[1:], names, strict=True)
    ]


def _identifiers(batch: Batch, field: str) -> list[object]:
    if field not in batch:
        return [None] * batch.num_graphs
    values = batch[field]
    return values.view(-1).tolist() if isinstance(values, torch.Tensor) else list(values)


@dataclass(frozen=True)
class FixedSigma:
    """One standard deviation for all structures (Tables 7 to 9 of arXiv:2403.09549).

    Args:
        sigma: in Å.
    """

    sigma: float

    def __post_init__(self) -> None:
        _require_positive("sigma", self.sigma)

    def sample(self, level: torch.Tensor) -> torch.Tensor:
        """(B,) Å, whatever the uniform numbers ``level`` (B,) are."""
        return torch.full_like(level, self.sigma)

    def scale(self, sigma: torch.Tensor) -> torch.Tensor:
        """(B,) Å, what the noise is divided by to become a target."""
        return sigma


@dataclass(frozen=True)
class SigmaLadder:
    """A geometric ladder of standard deviations, one rung per structure (the paper's multi-scale noise).

    Args:
        low: the smallest, in Å.
        high: the largest, in Å.
        levels: the number of rungs.
        normalise_by: ``own`` divides the noise by its structure's sigma, ``largest`` by ``high`` for all.
    """

    low: float
    high: float
    levels: int = 50
    normalise_by: str = "own"

    def __post_init__(self) -> None:
        _require_positive("sigma.low", self.low)
        if not self.low < self.high < float("inf"):
            raise ValueError(f"sigma.high must be finite and above sigma.low = {self.low}, got {self.high}")
        if self.levels < 2:
            raise ValueError(f"sigma.levels must be at least 2, got {self.levels}; for one level give `sigma` a number")
        if self.normalise_by not in ("own", "largest"):
            raise ValueError(f"sigma.normalise_by must be 'own' or 'largest', got '{self.normalise_by}'")

    def sample(self, level: torch.Tensor) -> torch.Tensor:
        """(B,) Å, sigma_k = low (high / low)^(k / (levels - 1)) for the rung k that ``level`` (B,) in [0, 1) picks."""
        rung = (level * self.levels).floor().clamp(max=self.levels - 1)
        return self.low * (self.high / self.low) ** (rung / (self.levels - 1))

    def scale(self, sigma: torch.Tensor) -> torch.Tensor:
        """(B,) Å, what the noise is divided by to become a target."""
        return sigma if self.normalise_by == "own" else torch.full_like(sigma, self.high)


Sigma = FixedSigma | SigmaLadder


def _require_positive(key: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{key} must be a positive, finite number of Å, got {value}; the paper uses 0.025 to 0.15")
