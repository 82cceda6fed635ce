"""The fields that this package adds to a batch, each with shape, unit and meaning; nobody else names them.

fairchem's own fields keep their names: ``pos`` (N, 3) Å, ``atomic_numbers`` (N,), ``natoms`` (B,), ``batch`` (N,),
``cell`` (B, 3, 3) Å, ``fixed`` (N,) 1 for atoms that must not move, ``tags`` (N,), ``energy`` (B,) eV,
``forces`` (N, 3) eV/Å, ``stress`` (B, 3, 3) eV/Å³.

N atoms, B structures, E edges, C channels, L = (lmax + 1)² coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch_geometric.data import Batch, Data

CORRUPTION = "corruption"  # Corruption, set by the training loader alone
ROWS = "rows"  # dict: output -> Rows, set by the training loader alone
NEIGHBOURS = "neighbours"  # the record of `backbones.neighbours`, set by loaders alone
MD = "md"  # (B,) bool, structures from molecular dynamics, which are never corrupted
_IDENTIFIERS = ("id", "sid", "fid")  # what data sets call a structure
NOISE = "noise"  # the name of the noise output, (N, 3), in units of its scale


class Corruption(NamedTuple):
    """What was done to a batch: the only way in which a label reaches a model.

    Attributes:
        mask: (N,) bool, the atoms that were moved.
        noise: (N, 3) Å, by how much; zero where ``mask`` is False.
        sigma: (B,) Å, the standard deviation of each structure's noise.
        forces: (N, 3) eV/Å, the original structure's forces to encode; zero where ``mask`` is False.
    """

    mask: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    forces: torch.Tensor


class Rows(NamedTuple):
    """Which rows of a prediction count, and by how many their sum is divided.

    Attributes:
        mask: (N,) or (B,) bool, the rows that enter the loss and that a head must compute.
        count: () int64, this rank's share of the loss's denominator.
        chosen: (n,) int64, the rows of ``mask``; None where no loader listed them.
    """

    mask: torch.Tensor
    count: torch.Tensor
    chosen: torch.Tensor | None = None

    def listed(self) -> Rows:
        """The same with `chosen`: a loader makes it on the CPU, so that no GPU must be asked for it."""
        return self._replace(chosen=self.mask.nonzero().view(-1))

    def where(self) -> torch.Tensor:
        """(n,) int64 the rows that count, in ascending order."""
        return holding(self.mask, self.chosen)


def corruption_of(batch: Batch) -> Corruption | None:
    """The batch's corruption record, or None for a batch that no training loader touched."""
    return batch.get(CORRUPTION)


def rows_of(batch: Batch) -> dict[str, Rows] | None:
    """Output -> the rows that count, where an output without rows is not computed.

    None for a batch that no training loader prepared, as at inference: all is computed but what serves training alone.
    """
    return batch.get(ROWS)


def holding(mask: torch.Tensor, listed: torch.Tensor | None) -> torch.Tensor:
    """(n,) int64 where a mask holds, in ascending order.

    Args:
        mask: bool, one-dimensional.
        listed: (n,) the same as a loader listed it, which a GPU takes on trust: looking would wait for it. None where
            there is no list, so that the device must be asked how many there are.

    Raises:
        ValueError: on a CPU, for a list of another mask.
    """
    if listed is not None and mask.is_cuda:
        return listed
    found = mask.nonzero().view(-1)
    if listed is not None and not torch.equal(found, listed):
        raise ValueError(
            f"a batch lists {len(listed)} rows or edges that count, and its mask (`rows`) has {len(found)}, or others; "
            "list rows again where the mask changes (`Rows.listed`), and edges (`with_neighbours`)"
        )
    return found


def free_atoms(batch: Batch) -> torch.Tensor:
    """(N,) bool, the atoms that may move; all of them where the data set marks none as fixed."""
    if "fixed" in batch:
        return batch.fixed == 0
    return torch.ones_like(batch.batch, dtype=torch.bool)


def corrupted_structures(batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    """(B,) bool, the structures with at least one atom of ``mask`` (N,)."""
    count = torch.zeros(batch.num_graphs, dtype=torch.long, device=mask.device)
    return count.index_add(0, batch.batch, mask.long()) > 0


def md_structures(batch: Batch) -> torch.Tensor:
    """(B,) bool, the structures that come from molecular dynamics; none where the data set does not say."""
    if MD in batch:
        return torch.as_tensor(batch[MD], dtype=torch.bool, device=batch.pos.device).view(-1)
    return torch.zeros(batch.num_graphs, dtype=torch.bool, device=batch.pos.device)


def structure_names(batch: Batch, indices: Iterable[int] | None = None) -> str:
    """Structures of a batch as a person can find them, by whatever identifiers the data set has."""
    indices = range(batch.num_graphs) if indices is None else indices
    return "; ".join(_structure_name(batch, index) for index in indices)


def structure_name(structure: Data) -> str:
    """A structure that is in no batch yet, by the same identifiers."""
    return _words({field: structure[field] for field in _IDENTIFIERS if field in structure})


def _structure_name(batch: Batch, index: int) -> str:
    known = {field: batch[field][index] for field in _IDENTIFIERS if field in batch}
    return _words(known) or f"structure {index} of its batch"


def _words(known: Mapping[str, Any]) -> str:
    values = {field: value.item() if torch.is_tensor(value) else value for field, value in known.items()}
    return ", ".join(f"{field} {value}" for field, value in values.items())
