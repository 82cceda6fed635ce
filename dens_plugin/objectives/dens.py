"""Denoising non-equilibrium structures (DeNS): Algorithm 1 of arXiv:2403.09549, per structure and per atom.

Some structures of a batch are corrupted: a random subset of their atoms moves by Gaussian noise and has the forces of
the original structure encoded. The energy of the original structure is asked of all, forces of the atoms left alone,
noise of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from dens_plugin.fields import NOISE, Output, Rows, corrupted_structures, free_atoms, md_structures, real_structures
from dens_plugin.objectives.base import Errors, Objective, Outputs
from dens_plugin.objectives.coefficient import linearly, require_coefficient
from dens_plugin.objectives.corruption import moved, noise_errors, noise_scale, record_of, with_copies
from dens_plugin.objectives.noise import FixedSigma, Sigma, StructureRandom

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


@dataclass(frozen=True, kw_only=True)
class DeNS(Objective):
    """Algorithm 1. Defaults are those of EquiformerV2 on OC20 S2EF-2M for 12 epochs (Table 7).

    Args:
        prob: p_DeNS, the probability that a structure is corrupted; 0 is plain S2EF, bit for bit.
        corrupt_ratio: r_DeNS, the probability that an atom of it is; None for all atoms (Tables 1(b) and 6, index 5).
        sigma: the standard deviation of the noise in Å, one or a ladder.
        coefficient: lambda_DeNS.
        decay_to: the share of the coefficient that is left at the end of training, linearly: 0 as in Section D.2 of the
            paper, 1 for a constant one.
        encode_forces: off for index 3 of Tables 1(b) and 6.
        encode_scale: what the encoded forces, in eV/Å, are multiplied by. 1 on OC20 and OC22; 23.0605 on MD17, where
            the authors encode kcal/mol/Å.
        energy_of_corrupted: whether energies of corrupted structures count; off for index 4 of Tables 1(b) and 6.
        forces_of_corrupted: whether the forces of the uncorrupted atoms of corrupted structures count.
        keep_labels: corrupt a copy beside each chosen structure, which so keeps all its labels; costs more time a step.
        only_drop_labels: a control: nothing moves and no noise is asked for, but the same labels are left out.
        all_atoms: corrupt fixed atoms too; the paper leaves them alone.
        denominators: ``joint`` averages the force and noise terms together over all atoms that count (OC20, OC22),
            ``own`` each over its own atoms (MD17).
        eligibility: which structures may be corrupted.

    Raises:
        ValueError: for an impossible setting.
    """

    prob: float = 0.5
    corrupt_ratio: float | None = 0.5
    sigma: Sigma = field(default_factory=lambda: FixedSigma(0.1))
    coefficient: float = 10.0
    decay_to: float = 1.0
    encode_forces: bool = True  # type: ignore[misc]  # a setting here, a constant of other objectives
    encode_scale: float = 1.0
    energy_of_corrupted: bool = True
    forces_of_corrupted: bool = True
    keep_labels: bool = False
    only_drop_labels: bool = False
    all_atoms: bool = False
    denominators: Literal["joint", "own"] = "joint"
    eligibility: Eligibility = field(default_factory=Eligibility)

    outputs: ClassVar[tuple[Output, ...]] = (Output(NOISE, "atom", 3, "Å"),)

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise ValueError(f"prob must be a probability in [0, 1], got {self.prob}")
        if self.corrupt_ratio is not None and not 0 < self.corrupt_ratio <= 1:
            raise ValueError(
                f"corrupt_ratio must be in (0, 1], got {self.corrupt_ratio}; "
                "use null for all atoms, or prob: 0 to train without DeNS"
            )
        require_coefficient(self.coefficient, self.decay_to)
        if not 0 < self.encode_scale < float("inf"):
            raise ValueError(f"encode_scale must be finite and above 0, got {self.encode_scale}; 1 encodes eV/Å")
        if self.denominators not in ("joint", "own"):
            raise ValueError(f"denominators must be 'joint' or 'own', got '{self.denominators}'")
        if self.keep_labels and self.only_drop_labels:
            raise ValueError("keep_labels and only_drop_labels exclude each other; set one of them to false")

    @property
    def needs(self) -> dict[str, str]:
        """Forces to encode, and stress where it decides what is eligible."""
        limits = self.eligibility
        by_forces = self.encode_forces or limits.max_force is not None or limits.max_net_force is not None
        needed = {"forces": "encode them and to choose structures by them"} if by_forces else {}
        return needed | ({"stress": "compare with eligibility.max_stress"} if limits.max_stress is not None else {})

    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """Lines 7 to 22 of Algorithm 1, for all structures at once."""
        draws = rng.draws(batch)
        chosen = (draws.coin < self.prob) & self.eligibility.structures(batch, rng.epoch)  # (B,)
        mask = chosen[batch.batch] & (self.all_atoms | free_atoms(batch))
        if self.corrupt_ratio is not None:
            mask &= draws.atom < self.corrupt_ratio
        mask &= self.eligibility.share(mask, batch)[batch.batch]
        normal, sigma = draws.normal, self.sigma.sample(draws.level)  # (N, 3), (B,)
        if self.only_drop_labels:
            normal = torch.zeros_like(normal)
        if self.keep_labels:
            copied = corrupted_structures(batch, mask)
            atoms, clean = copied[batch.batch], torch.zeros_like(mask)
            batch = with_copies(batch, copied)
            mask, normal = torch.cat([clean, mask[atoms]]), torch.cat([normal, normal[atoms]])
            sigma = torch.cat([sigma, sigma[copied]])
        encodes = self.encode_forces and not self.only_drop_labels
        encoded = batch.forces * self.encode_scale if encodes else None
        return moved(batch, mask, normal=normal, sigma=sigma, encoded=encoded)

    def rows(self, batch: Batch) -> dict[str, Rows]:
        """Forces of the uncorrupted atoms, noise of the corrupted ones, energies of the original structures."""
        mask, counted = record_of(batch).mask, self.counted_atoms(batch)
        dropped = mask if self.all_atoms else counted & mask
        corrupted = corrupted_structures(batch, mask)
        atoms = counted & ~mask if self.forces_of_corrupted else counted & ~corrupted[batch.batch]
        structures = torch.ones_like(corrupted) if self.energy_of_corrupted else ~corrupted
        rows = self.label_rows(batch, structures=structures, atoms=atoms)
        rows[NOISE] = Rows.mean(torch.zeros_like(dropped) if self.only_drop_labels else dropped)
        joint = (atoms | dropped).sum()
        every = torch.tensor(batch.num_graphs, device=mask.device)  # as in Algorithm 1, whatever energies are left out
        for output in (*self.labels, *self.outputs):
            if output.level == "structure" and not self.keep_labels:
                rows[output.name] = rows[output.name]._replace(count=every)
            if output.level == "atom" and self.denominators == "joint":
                rows[output.name] = rows[output.name]._replace(count=joint)
        return rows

    def targets(self, batch: Batch) -> Outputs:
        """Noise over its scale, dimensionless (line 25)."""
        corruption = record_of(batch)
        return {NOISE: corruption.noise / noise_scale(batch, self.sigma)}

    def coefficients(self, progress: float) -> dict[str, float]:
        """lambda_DeNS after a share ``progress`` of the training."""
        return {NOISE: linearly(self.coefficient, self.decay_to, progress)}

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Errors]:
        """Forces and energies apart for clean and corrupted structures (eV/Å, eV), and the noise (Å)."""
        corruption, counted = record_of(batch), self.counted_atoms(batch)
        corrupted = corrupted_structures(batch, corruption.mask)  # (B,)
        of_corrupted = corrupted[batch.batch]  # (N,)
        noise = noise_errors(batch, outputs[NOISE] * noise_scale(batch, self.sigma))
        if self.only_drop_labels:
            noise = noise._replace(mask=torch.zeros_like(noise.mask))
        found = {"noise_mae": noise}
        if "forces" in outputs:
            forces = (outputs["forces"] - batch.forces).abs()
            found["forces_clean_mae"] = Errors(forces, counted & ~of_corrupted)
            found["forces_uncorrupted_mae"] = Errors(forces, counted & of_corrupted & ~corruption.mask)
        if "energy" in outputs:
            energy = (outputs["energy"].view(-1) - batch.energy).abs()
            found["energy_clean_mae"] = Errors(energy, real_structures(batch) & ~corrupted)
            found["energy_corrupted_mae"] = Errors(energy, corrupted)
        return found


def _sum_by_structure(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, ...) sums of ``values`` (N, ...)."""
    return values.new_zeros(batch.num_graphs, *values.shape[1:]).index_add(0, batch.batch, values)
