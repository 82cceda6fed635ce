"""What an objective is: the seam between a training method and the trainer, which knows none of them by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from typing_extensions import Self

from dens_plugin.fields import ENERGY, FORCES, ROWS, Output, Rows, free_atoms, real_atoms, real_structures
from dens_plugin.settings import SETTING, read_fields

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import StructureRandom

Outputs = dict[str, torch.Tensor]


class Errors(NamedTuple):
    """Errors of which the mean is worth watching, with the rows that count: nothing is selected, so nobody waits.

    Attributes:
        values: (R,) or (R, k), with R atoms or structures.
        mask: (R,) bool.
    """

    values: torch.Tensor
    mask: torch.Tensor

    def total(self) -> torch.Tensor:
        """() sum over the rows that count."""
        values = self.values.flatten(1) if self.values.dim() > 1 else self.values[:, None]
        return torch.where(self.mask[:, None], values, values.new_zeros(())).sum()

    def number(self) -> torch.Tensor:
        """() int64 numbers that `total` sums."""
        return self.mask.sum() * self.values.shape[1:].numel()

    def mean(self) -> float:
        """The mean; NaN of nothing."""
        return (self.total() / self.number()).item()


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A training method: what is corrupted, what is a target, which rows count.

    The loss is a sum over `labels` and `outputs`: of each, its coefficient times the errors of the rows that count,
    divided by a count over all ranks. What has no rows is not computed. An objective holds settings and no state:
    objectives are frozen dataclasses, and their fields are the keys of the YAML block ``task.objective``.

    Attributes:
        labels: what the config trains on by labels of the data, with coefficients and losses of its own.
        free_only: whether fixed atoms are left out of the loss (fairchem's ``train_on_free_atoms``).
        outputs: what this method predicts besides; a model needs a head for each.
        encode_forces: whether the backbone must be able to encode forces.
    """

    labels: tuple[Output, ...] = field(default=(ENERGY, FORCES), metadata={SETTING: False})
    free_only: bool = field(default=True, metadata={SETTING: False})
    outputs: ClassVar[tuple[Output, ...]] = ()
    encode_forces: ClassVar[bool] = False

    @classmethod
    def from_settings(
        cls, block: Mapping[str, Any], *, labels: tuple[Output, ...] = (ENERGY, FORCES), free_only: bool = True
    ) -> Self:
        """Build from the keys of a YAML block.

        Raises:
            ValueError: for an unknown key or an impossible value.
        """
        settings = read_fields(cls, block, "task.objective")
        return replace(settings, labels=labels, free_only=free_only)

    def prepare(self, batch: Batch, rng: StructureRandom) -> Batch:
        """The training batch of a batch of data, with the rows that count; this is what the training loader calls."""
        prepared = self.corrupt(batch, rng)
        prepared[ROWS] = {output: rows.listed() for output, rows in self.rows(prepared).items()}
        return prepared

    @abstractmethod
    def corrupt(self, batch: Batch, rng: StructureRandom) -> Batch:
        """A new batch with this method's changes, and its structures or others; the given one stays as it is."""

    def rows(self, batch: Batch) -> dict[str, Rows]:
        """Output -> the rows that count, of labels and of `outputs`; an output that is not named is not computed."""
        return self.label_rows(batch)

    def targets(self, batch: Batch) -> Outputs:
        """What the predictions of `outputs` are compared with, (N, dim) or (B, dim)."""
        return {}

    def predictions(self, outputs: Outputs, batch: Batch) -> Outputs:
        """What is compared with `targets`: by default the heads' outputs (normalised) of the same names."""
        return {output.name: outputs[output.name] for output in self.outputs}

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Weights of `outputs` in the loss after a share ``progress`` in [0, 1] of the training."""
        return {}

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Errors]:
        """Name -> errors of this method's own, best in physical units; ``outputs`` are in physical units."""
        return {}

    @property
    def needs(self) -> Mapping[str, str]:
        """Field of the data -> what for; those of `labels` need not be named."""
        return {}

    def counted_atoms(self, batch: Batch) -> torch.Tensor:
        """(N,) bool, the atoms whose labels may enter the loss."""
        return free_atoms(batch) if self.free_only else real_atoms(batch)

    def label_rows(
        self, batch: Batch, *, structures: torch.Tensor | None = None, atoms: torch.Tensor | None = None
    ) -> dict[str, Rows]:
        """Rows of all `labels`, each averaged over its own rows.

        Args:
            batch: prepared or not.
            structures: (B,) bool, whose labels count; all by default.
            atoms: (N,) bool, whose labels count; `counted_atoms` by default.
        """
        if structures is None:
            structures = real_structures(batch)
        masks = {"structure": structures, "atom": self.counted_atoms(batch) if atoms is None else atoms}
        return {label.name: Rows.mean(masks[label.level]) for label in self.labels}
