"""Denoising non-equilibrium structures (DeNS): Algorithm 1 of arXiv:2403.09549, per structure and per atom.

Some structures of a batch are corrupted: a random subset of their atoms moves by Gaussian noise and has the forces of
the original structure encoded. The energy of the original structure is asked of all, forces of the atoms left alone,
noise of the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from dens_plugin.fields import (
    CORRUPTION,
    NOISE,
    Corruption,
    Rows,
    corrupted_structures,
    corruption_of,
    free_atoms,
    md_structures,
)
from dens_plugin.objectives.base import Objective, Outputs
from dens_plugin.objectives.noise import FixedSigma, Sigma, SigmaLadder, StructureRandom
from dens_plugin.settings import mapping, number, reject_unknown, switch

if TYPE_CHECKING:
    from torch_geometric.data import Batch


@dataclass(frozen=True)
class Eligibility:
    """Which structures may be corrupted at all (the recipes of OMat24 and MPtrj); each limit is off at None.

    Args:
        min_atoms: the fewest atoms of a structure.
        max_share: the largest share of corrupted among its atoms; a draw above it leaves the structure alone.
        max_force: in eV/Å, the largest force on any of its atoms.
        max_net_force: in eV/Å, the norm of the sum of its forces.
        max_stress: in eV/Å³, the Frobenius norm of its stress.
        first_epochs: epochs after which no structure is corrupted any more.
    """

    min_atoms: int | None = None
    max_share: float | None = None
    max_force: float | None = None
    max_net_force: float | None = None
    max_stress: float | None = None
    first_epochs: int | None = None

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"eligibility.{key} must be above 0, got {value}; leave it out to have no limit")

    def structures(self, batch: Batch, epoch: int) -> torch.Tensor:
        """(B,) bool, by everything that is known before the atoms are drawn."""
        allowed = ~md_structures(batch)
        if self.first_epochs is not None and epoch >= self.first_epochs:
            return torch.zeros_like(allowed)
        if self.min_atoms is not None:
            allowed &= batch.natoms >= self.min_atoms
        if self.max_force is not None:
            norm = batch.forces.norm(dim=-1)  # (N,)
            largest = norm.new_zeros(batch.num_graphs).scatter_reduce(0, batch.batch, norm, "amax")
            allowed &= largest <= self.max_force
        if self.max_net_force is not None:
            allowed &= _sum_by_structure(batch.forces, batch).norm(dim=-1) <= self.max_net_force
        if self.max_stress is not None:
            allowed &= batch.stress.reshape(batch.num_graphs, -1).norm(dim=-1) <= self.max_stress
        return allowed

    def share(self, mask: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(B,) bool, the structures of which ``mask`` (N,) takes no more than ``max_share``."""
        if self.max_share is None:
            return torch.ones(batch.num_graphs, dtype=torch.bool, device=mask.device)
        return _sum_by_structure(mask.float(), batch) / batch.natoms <= self.max_share


@dataclass(frozen=True)
class Decay:
    """A coefficient that falls linearly during training, to ``floor`` times its first value.

    Args:
        floor: share left at the end; 0 as in Section D.2 of the paper, 1 for a constant coefficient.
    """

    floor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"decay_to must be a share in [0, 1], got {self.floor}; 1 keeps the coefficient constant")

    def __call__(self, progress: float) -> float:
        """The factor after a share ``progress`` of the training."""
        return 1 - (1 - self.floor) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class DeNS(Objective):
    """Algorithm 1. Defaults are those of EquiformerV2 on OC20 S2EF-2M for 12 epochs (Table 7).

    Args:
        prob: p_DeNS, the probability that a structure is corrupted; 0 is plain S2EF, bit for bit.
        corrupt_ratio: r_DeNS, the probability that an atom of it is; None for all atoms (Tables 1(b) and 6, index 5).
        sigma: the standard deviation of the noise, one or a ladder.
        coefficient: lambda_DeNS.
        decay: how the coefficient changes during training.
        encode_forces: off for index 3 of Tables 1(b) and 6.
        energy_of_corrupted: off for index 4 of Tables 1(b) and 6.
        all_atoms: corrupt fixed atoms too; the paper leaves them alone.
        denominators: ``joint`` averages the force and noise terms together over all atoms that count (OC20, OC22),
            ``own`` each over its own atoms (MD17).
        eligibility: which structures may be corrupted.
        free_only: whether fixed atoms are left out of the loss.

    Raises:
        ValueError: for a setting that cannot be meant.
    """

    prob: float = 0.5
    corrupt_ratio: float | None = 0.5
    sigma: Sigma = field(default_factory=lambda: FixedSigma(0.1))
    coefficient: float = 10.0
    decay: Decay = field(default_factory=Decay)
    encode_forces: bool = True
    energy_of_corrupted: bool = True
    all_atoms: bool = False
    denominators: Literal["joint", "own"] = "joint"
    eligibility: Eligibility = field(default_factory=Eligibility)
    free_only: bool = True

    outputs: ClassVar[tuple[str, ...]] = (NOISE,)

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise ValueError(f"prob must be a probability in [0, 1], got {self.prob}")
        if self.corrupt_ratio is not None and not 0 < self.corrupt_ratio <= 1:
            raise ValueError(
                f"corrupt_ratio must be in (0, 1], got {self.corrupt_ratio}; "
                "use null for all atoms, or prob: 0 to train without DeNS"
            )
        if not 0 <= self.coefficient < float("inf"):
            raise ValueError(f"coefficient must be finite and not negative, got {self.coefficient}")
        if self.denominators not in ("joint", "own"):
            raise ValueError(f"denominators must be 'joint' or 'own', got '{self.denominators}'")

    @classmethod
    def from_settings(cls, block: Mapping[str, Any], *, free_only: bool) -> DeNS:
        """Build from ``task.objective``: this class's fields, with ``decay_to`` for the decay's floor."""
        return cls(**_parsed(block), free_only=free_only)

    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """Lines 7 to 22 of Algorithm 1, for all structures at once."""
        draws = rng.draws(batch)
        chosen = (draws.coin < self.prob) & self.eligibility.structures(batch, rng.epoch)  # (B,)
        mask = chosen[batch.batch] & self._movable(batch)
        if self.corrupt_ratio is not None:
            mask &= draws.atom < self.corrupt_ratio
        mask &= self.eligibility.share(mask, batch)[batch.batch]
        sigma = self.sigma.sample(draws.level)  # (B,)
        noise = _only(mask, draws.normal * sigma[batch.batch, None])  # (N, 3)
        encoded = _only(mask & self.encode_forces, batch.forces)
        corrupted = copy.copy(batch)
        corrupted.pos = batch.pos + noise
        corrupted[CORRUPTION] = Corruption(mask, noise, sigma, encoded)
        return corrupted

    def rows(self, batch: Batch) -> dict[str, Rows]:
        """Forces of the uncorrupted atoms, noise of the corrupted ones, energies of the original structures."""
        corruption = _record(batch)
        counted = self.counted_atoms(batch)
        if self.all_atoms:
            counted = counted | corruption.mask
        forces, noise = self.counted_atoms(batch) & ~corruption.mask, counted & corruption.mask
        structures = torch.ones(batch.num_graphs, dtype=torch.bool, device=batch.pos.device)
        energy = structures if self.energy_of_corrupted else ~corrupted_structures(batch, corruption.mask)
        joint = self.denominators == "joint"
        return {
            "energy": Rows(energy, structures.sum()),
            "forces": Rows(forces, (counted if joint else forces).sum()),
            NOISE: Rows(noise, (counted if joint else noise).sum()),
        }

    def targets(self, batch: Batch) -> Outputs:
        """Noise over its scale, dimensionless (line 25)."""
        corruption = _record(batch)
        return {NOISE: corruption.noise / self._atom_scale(batch, corruption)}

    def coefficients(self, progress: float) -> dict[str, float]:
        """lambda_DeNS after a share ``progress`` of the training."""
        return {NOISE: self.coefficient * self.decay(progress)}

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Forces and energies apart for clean and corrupted structures (eV/Å, eV), and the noise (Å)."""
        corruption, counted = _record(batch), self.counted_atoms(batch)
        corrupted = corrupted_structures(batch, corruption.mask)  # (B,)
        forces = (outputs["forces"] - batch.forces).abs()
        energy = (outputs["energy"].view(-1) - batch.energy).abs()
        noise = (outputs[NOISE] * self._atom_scale(batch, corruption) - corruption.noise).abs()
        return {
            "forces_clean_mae": forces[counted & ~corrupted[batch.batch]],
            "forces_uncorrupted_mae": forces[counted & corrupted[batch.batch] & ~corruption.mask],
            "noise_mae": noise[corruption.mask],
            "energy_clean_mae": energy[~corrupted],
            "energy_corrupted_mae": energy[corrupted],
        }

    def check(self, batch: Batch) -> None:
        """Forces are needed to encode, stress where it decides what is eligible."""
        if "forces" not in batch:
            raise ValueError(
                "DeNS encodes forces, and the training set has none; map their name with "
                "`dataset.train.key_mapping` (old LMDBs: `force: forces`) or train with `objective: {name: s2ef}`"
            )
        if self.eligibility.max_stress is not None and "stress" not in batch:
            raise ValueError("eligibility.max_stress needs `stress` labels, which the training set lacks")

    def _movable(self, batch: Batch) -> torch.Tensor:
        return torch.ones_like(batch.batch, dtype=torch.bool) if self.all_atoms else free_atoms(batch)

    def _atom_scale(self, batch: Batch, corruption: Corruption) -> torch.Tensor:
        """(N, 1) Å, the unit in which noise is predicted."""
        return self.sigma.scale(corruption.sigma)[batch.batch, None]


def _parsed(block: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from YAML."""
    where = "task.objective"
    readers: dict[str, Callable[[Any, str], Any]] = {
        "prob": number,
        "corrupt_ratio": lambda value, key: None if value is None else number(value, key),
        "sigma": _sigma,
        "coefficient": number,
        "decay_to": lambda value, key: Decay(number(value, key)),
        "encode_forces": switch,
        "energy_of_corrupted": switch,
        "all_atoms": switch,
        "denominators": lambda value, _: value,
        "eligibility": _eligibility,
    }
    reject_unknown(block, readers, where)
    parsed = {key: readers[key](value, f"{where}.{key}") for key, value in block.items()}
    if "decay_to" in parsed:
        parsed["decay"] = parsed.pop("decay_to")
    return parsed


def _sigma(value: Any, where: str) -> Sigma:
    if not isinstance(value, Mapping):
        return FixedSigma(number(value, where))
    names = [entry.name for entry in fields(SigmaLadder)]
    reject_unknown(value, names, where)
    missing = {"low", "high"} - set(value)
    if missing:
        raise ValueError(f"{where} lacks {' and '.join(sorted(missing))}; a ladder of sigmas needs low and high in Å")
    numbers = {key: number(value[key], f"{where}.{key}") for key in value if key != "normalise_by"}
    return SigmaLadder(**{**value, **numbers})


def _eligibility(value: Any, where: str) -> Eligibility:
    block = mapping(value, where)
    reject_unknown(block, [entry.name for entry in fields(Eligibility)], where)
    limits = {key: number(limit, f"{where}.{key}") for key, limit in block.items() if limit is not None}
    return Eligibility(**limits)


def _record(batch: Batch) -> Corruption:
    corruption = corruption_of(batch)
    if corruption is None:
        raise ValueError("this batch was not corrupted; pass it through `DeNS.prepare` first")
    return corruption


def _only(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` (N, 3) where ``mask`` (N,) holds, zero elsewhere."""
    return torch.where(mask[:, None], values, values.new_zeros(()))


def _sum_by_structure(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, ...) sums of ``values`` (N, ...)."""
    return values.new_zeros(batch.num_graphs, *values.shape[1:]).index_add(0, batch.batch, values)
