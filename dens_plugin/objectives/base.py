"""What an objective is: the seam between a training method and the trainer, which knows none of them by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from dens_plugin.fields import ROWS, Rows, free_atoms
from dens_plugin.settings import reject_unknown

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import StructureRandom

Outputs = dict[str, torch.Tensor]


class Objective(ABC):
    """A training method: what is corrupted, what is a target, which rows count.

    The loss is, for every target, its coefficient times the sum of the errors over the rows that count, divided by a
    count over all ranks. An objective holds settings and no state: objectives are frozen dataclasses, whose fields are
    the keys of the YAML block ``task.objective``.

    Attributes:
        free_only: whether fixed atoms are left out of the loss (fairchem's ``train_on_free_atoms``).
        outputs: predictions, one (N, 3) row per atom, that this method needs beside those of fairchem.
        encode_forces: whether the backbone must be able to encode forces.
    """

    free_only: bool
    outputs: ClassVar[tuple[str, ...]] = ()
    encode_forces: bool = False

    @classmethod
    def from_settings(cls, block: Mapping[str, Any], *, free_only: bool) -> Self:
        """Build from the keys of a YAML block.

        Raises:
            ValueError: for an unknown key or an impossible value.
        """
        reject_unknown(block, (), "task.objective")
        return cls(free_only=free_only)  # type: ignore[call-arg]  # heirs are dataclasses with this field

    def prepare(self, batch: Batch, rng: StructureRandom) -> Batch:
        """Corrupt a batch and list the rows that count; this is what the training loader calls."""
        prepared = self.corrupt(batch, rng)
        rows = self.rows(prepared)
        if "stress" in prepared:
            every = torch.ones(prepared.num_graphs, dtype=torch.bool, device=prepared.pos.device)
            rows = {"stress": Rows(every, every.sum()), **rows}
        prepared[ROWS] = {output: its_rows.listed() for output, its_rows in rows.items()}
        return prepared

    @abstractmethod
    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """A new batch with this method's changes; the given one stays as it is."""

    @abstractmethod
    def rows(self, batch: Batch) -> dict[str, Rows]:
        """Output -> the rows that count. Outputs that are not named are not computed; stress counts in full."""

    def targets(self, batch: Batch) -> Outputs:
        """The normalised labels of `outputs`."""
        return {}

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Weights of `outputs` in the loss after a share ``progress`` in [0, 1] of the training."""
        return {}

    def losses(self) -> Mapping[str, str]:
        """Names of fairchem's loss functions for `outputs`."""
        return dict.fromkeys(self.outputs, "l2mae")

    def forward(self, predict: Callable[[Batch], Outputs], batch: Batch) -> Outputs:
        """Run the model: once, unless a method needs more."""
        return predict(batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Name -> errors, any shape, whose mean is worth watching; ``outputs`` are in physical units."""
        return {}

    def check(self, batch: Batch) -> None:  # noqa: B027  (most methods have nothing to refuse)
        """Refuse data that this method cannot train on, before the first step.

        Raises:
            ValueError: naming what is missing and the remedy.
        """

    def counted_atoms(self, batch: Batch) -> torch.Tensor:
        """(N,) bool, the atoms whose vectors may enter the loss."""
        return free_atoms(batch) if self.free_only else torch.ones_like(batch.batch, dtype=torch.bool)
