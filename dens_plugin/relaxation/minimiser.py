"""Many structures relaxed at once with fairchem's L-BFGS; each leaves the batch when it is done.

fairchem keeps relaxed structures in the batch and pays for their forces until the last one is done, takes NaN forces
for converged ones, and starts every kind of failure over in halves.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from fairchem.core.common.relaxation import OptimizableBatch
from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from torch_geometric.data import Batch

from dens_plugin.compat import is_out_of_memory

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from dens_plugin.relaxation.potential import Potential
    from dens_plugin.relaxation.settings import RelaxationSettings

CONVERGED = "converged"
OUT_OF_STEPS = "out_of_steps"
NOT_FINITE = "not_finite"
OUT_OF_MEMORY = "out_of_memory"
STATUSES = (CONVERGED, OUT_OF_STEPS, NOT_FINITE, OUT_OF_MEMORY)


class Frame(NamedTuple):
    """A structure at one step.

    Attributes:
        pos: (N, 3) Å.
        forces: (N, 3) eV/Å, zero on fixed atoms.
        energy: eV.
    """

    pos: np.ndarray
    forces: np.ndarray
    energy: float

    @property
    def fmax(self) -> float:
        """The longest force in eV/Å; NaN if a force is."""
        return float(np.linalg.norm(self.forces, axis=1).max())

    @property
    def finite(self) -> bool:
        """Whether energy and forces are numbers."""
        return bool(np.isfinite(self.energy) and np.isfinite(self.forces).all())


class Outcome(NamedTuple):
    """What became of a structure.

    Attributes:
        structure: as it was given.
        status: one of `STATUSES`.
        steps: how many were taken.
        frames: the first and the last, or all; the last finite one is the last.
    """

    structure: Data
    status: str
    steps: int
    frames: list[Frame]

    def shifted(self, energy: float) -> Outcome:
        """The same with a constant (eV) added to all energies."""
        return self._replace(frames=[frame._replace(energy=frame.energy + energy) for frame in self.frames])


def outcomes(structures: Sequence[Data], potential: Potential, settings: RelaxationSettings) -> Iterator[Outcome]:
    """Relax structures together, in halves where memory runs out, each handed over as soon as it is done.

    A half starts over, so that a result does not depend on where memory ran out.

    Args:
        structures: of one batch, with ``fixed`` and ``tags``.
        potential: energies and forces.
        settings: of the optimizer.

    Yields:
        One outcome per structure, in the order in which they finish.
    """
    waiting = [list(structures)]
    while waiting:
        left = waiting.pop()
        try:
            for outcome in _minimise(left, potential, settings):
                left = [structure for structure in left if structure is not outcome.structure]
                yield outcome
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if not left:
            continue
        # Not in the handler: the error would keep the batch's tensors alive.
        torch.cuda.empty_cache()
        if len(left) == 1:
            positions = left[0].pos.numpy()
            unknown = Frame(positions, np.full_like(positions, np.nan), float("nan"))
            yield Outcome(left[0], OUT_OF_MEMORY, 0, [unknown])
        else:
            waiting += [left[len(left) // 2 :], left[: len(left) // 2]]


def _minimise(structures: Sequence[Data], potential: Potential, settings: RelaxationSettings) -> Iterator[Outcome]:
    tracks = [_Track(structure, settings) for structure in structures]
    batch = ExactBatch(_batch(tracks, potential), potential, mask_converged=False)
    optimizer = ShrinkingLBFGS(batch, **settings.optimizer)
    for step in range(settings.steps + 1):
        ended = [track.add(frame, step) for track, frame in zip(tracks, _frames(optimizer.optimizable), strict=True)]
        yield from (outcome for outcome in ended if outcome is not None)
        kept = [outcome is None for outcome in ended]
        tracks = [track for track, is_kept in zip(tracks, kept, strict=True) if is_kept]
        if not tracks:
            return
        if not all(kept):
            optimizer.keep(torch.tensor(kept, device=potential.device), _batch(tracks, potential))
        optimizer.step(step)


@dataclass
class _Track:
    """The frames of a structure that is being relaxed."""

    structure: Data
    settings: RelaxationSettings
    frames: list[Frame] = field(default_factory=list)

    def add(self, frame: Frame, step: int) -> Outcome | None:
        """Take the frame of a step; the outcome if it is the last one."""
        if not frame.finite:
            # The last finite frame is worth keeping, and there is none before the first step.
            return Outcome(self.structure, NOT_FINITE, max(step - 1, 0), self.frames or [frame])
        if self.settings.trajectory != "full":
            del self.frames[1:]
        self.frames.append(frame)
        if frame.fmax < self.settings.fmax:
            return Outcome(self.structure, CONVERGED, step, self.frames)
        if step == self.settings.steps:
            return Outcome(self.structure, OUT_OF_STEPS, step, self.frames)
        return None

    @property
    def moved(self) -> Data:
        """The structure at its last frame."""
        if not self.frames:
            return self.structure
        moved = copy.copy(self.structure)
        moved.pos = torch.from_numpy(self.frames[-1].pos)
        return moved


class ExactBatch(OptimizableBatch):
    """fairchem's batch of structures, predicted anew whenever an atom moved at all.

    fairchem compares positions with a relative tolerance of 1e-5: 20 Å from the origin it reuses the forces of before
    after moves of up to 2e-4 Å, which near a minimum is a whole step.
    """

    ignored_changes: ClassVar[set[str]] = {"pbc", "cell", "atomic_numbers"}

    def check_state(self, batch: Batch, tol: float = 0.0) -> list[str]:
        """The changes since the last prediction, exactly."""
        known = self._cached_batch
        return [] if known is not None and torch.equal(known.pos, batch.pos) else ["pos"]

    def kept(self, structures: torch.Tensor, batch: Batch) -> ExactBatch:
        """Some of the structures, with what is known of them.

        Args:
            structures: (B,) bool, which ones.
            batch: these structures alone, at the same positions.
        """
        atoms = structures[self.batch_indices]
        kept = ExactBatch(batch, self.trainer, mask_converged=False)
        kept.torch_results = {"energy": self.torch_results["energy"][structures]}
        kept.torch_results["forces"] = self.torch_results["forces"][atoms]
        kept._cached_batch = SimpleNamespace(pos=kept.batch.pos.clone())
        return kept


# Recent versions of ASE make abstract what their own optimisers ask of such a class, under names that fairchem does not
# know: its batch cannot be made at all with ASE 3.29. Nothing here calls these methods.
ExactBatch.__abstractmethods__ = frozenset()


class ShrinkingLBFGS(LBFGS):
    """fairchem's L-BFGS, from which structures can leave, and in which no structure is lost to a division by zero."""

    optimizable: ExactBatch
    s: deque[torch.Tensor]
    y: deque[torch.Tensor]
    rho: deque[torch.Tensor]
    r0: torch.Tensor | None
    f0: torch.Tensor | None

    def keep(self, structures: torch.Tensor, batch: Batch) -> None:
        """Go on with some of the structures.

        Args:
            structures: (B,) bool, which ones.
            batch: these structures alone, at their present positions.
        """
        atoms = structures[self.optimizable.batch_indices]
        self.s, self.y = (deque((step[atoms] for step in steps), self.memory) for steps in (self.s, self.y))
        self.rho = deque((value[structures] for value in self.rho), self.memory)
        if self.r0 is not None and self.f0 is not None:
            self.r0, self.f0 = self.r0[atoms], self.f0[atoms]
        self.optimizable = self.optimizable.kept(structures, batch)

    def step(self, iteration: int) -> None:
        """fairchem's, which counts the steps that it remembers rather than those of the relaxation."""
        super().step(0 if self.r0 is None else len(self.s) + 1)
        if self.rho:
            self._forget_where(~torch.isfinite(self.rho[-1]))

    def determine_step(self, dr: torch.Tensor) -> torch.Tensor:
        """fairchem's; a structure whose step is not finite goes down along its forces instead."""
        sound = self._sum(~torch.isfinite(dr).all(dim=1)) == 0
        descent = self.H0 * self.optimizable.get_forces(apply_constraint=True).to(dr)
        return super().determine_step(torch.where(sound[self.optimizable.batch_indices, None], dr, descent))

    def _forget_where(self, structures: torch.Tensor) -> None:
        """Take the last pair of steps (s, y) with y·s = 0 out of these structures' memory: it then adds zeros."""
        atoms = structures[self.optimizable.batch_indices]
        self.rho[-1] = self.rho[-1].masked_fill(structures, 0)
        for steps in (self.s, self.y):
            steps[-1] = steps[-1].masked_fill(atoms[:, None], 0)

    def _sum(self, atoms: torch.Tensor) -> torch.Tensor:
        """(B,) how many of ``atoms`` (N,) bool a structure has."""
        batch = self.optimizable.batch
        return torch.zeros_like(batch.natoms).index_add(0, batch.batch, atoms.to(batch.natoms.dtype))


def _batch(tracks: Sequence[_Track], potential: Potential) -> Batch:
    return Batch.from_data_list([track.moved for track in tracks]).to(potential.device)


def _frames(batch: ExactBatch) -> list[Frame]:
    forces = batch.get_forces(apply_constraint=True)
    energies = batch.get_potential_energies().tolist()
    natoms = batch.batch.natoms.tolist()
    rows = (torch.split(value.cpu(), natoms) for value in (batch.get_positions(), forces))
    return [Frame(pos.numpy(), force.numpy(), energy) for pos, force, energy in zip(*rows, energies, strict=True)]
