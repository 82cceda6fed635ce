"""The fields that this package adds to a batch, each with shape, unit and meaning; nobody else names them.

fairchem's own fields keep their names: ``pos`` (N, 3) Å, ``atomic_numbers`` (N,), ``natoms`` (B,), ``batch`` (N,),
``cell`` (B, 3, 3) Å, ``fixed`` (N,) 1 for atoms that must not move, ``tags`` (N,), ``energy`` (B,) eV,
``forces`` (N, 3) eV/Å, ``stress`` (B, 3, 3) eV/Å³.

N atoms, B structures, E edges, C channels, L = (lmax + 1)² coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from torch_geometric.data import Batch, Data

CORRUPTION = "corruption"  # Corruption, set by the training loader alone
ROWS = "rows"  # dict: output -> Rows, set by the training loader alone
NEIGHBOURS = "neighbours"  # the record of `backbones.neighbours`, set by loaders alone
PADDING = "padding"  # Padding, set by loaders alone
CLEAN_ATOMS = "clean_atoms"  # (N,) the same atom of the clean structure, where a method has it in the batch
MD = "md"  # (B,) bool, structures from molecular dynamics, which are never corrupted
_IDENTIFIERS = ("id", "sid", "fid")  # what data sets call a structure
NOISE = "noise"  # the name of the noise output, (N, 3), in units of its scale


class Output(NamedTuple):
    """Something that a model predicts and a loss compares with a target.

    Attributes:
        name: of the head's output and of its rows.
        level: ``atom`` for (N, dim), ``structure`` for (B, dim).
        dim: numbers per row.
        unit: of the target, as a person reads it.
        loss: name of a fairchem loss function, or of one of `training.losses`.
    """

    name: str
    level: Literal["atom", "structure"]
    dim: int
    unit: str
    loss: str = "l2mae"


ENERGY = Output("energy", "structure", 1, "eV", "mae")
FORCES = Output("forces", "atom", 3, "eV/Å")


class Corruption(NamedTuple):
    """What was done to a batch: the only way in which a label reaches a model.

    Attributes:
        mask: (N,) bool, the atoms that were moved.
        noise: (N, 3) Å, by how much; zero where ``mask`` is False.
        sigma: (B,) Å, the standard deviation of each structure's noise.
        forces: (N, 3) the original structure's forces to encode, in eV/Å times the objective's scale; zero where
            ``mask`` is False.
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
        weight: (N,) or (B,) what the error of each row is multiplied by; None for one.
        is_padded: whether ``chosen`` ends with rows of ghosts, which do not count, some of them several times.
    """

    mask: torch.Tensor
    count: torch.Tensor
    chosen: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    is_padded: bool = False

    @classmethod
    def mean(cls, mask: torch.Tensor) -> Rows:
        """The rows of ``mask``, whose errors are averaged."""
        return cls(mask, mask.sum())

    def listed(self) -> Rows:
        """The same with `chosen`: a loader makes it on the CPU, so that no GPU must be asked for it."""
        return self._replace(chosen=self.mask.nonzero().view(-1))

    def where(self) -> torch.Tensor:
        """(n,) int64 the rows that count, in ascending order; and ghosts behind them, if the list is padded."""
        return holding(self.mask, self.chosen, is_padded=self.is_padded)


class Padding(NamedTuple):
    """Which atoms and structures of a padded batch are real: ghosts behind them fill it to a size that many share.

    Attributes:
        atoms: (N,) bool.
        structures: (B,) bool.
        num_atoms: how many of the atoms are real.
        num_structures: how many of the structures are real.
    """

    atoms: torch.Tensor
    structures: torch.Tensor
    num_atoms: int
    num_structures: int


def padding_of(batch: Batch) -> Padding | None:
    """Which atoms and structures of a batch are real; None for a batch without ghosts."""
    return batch.get(PADDING)


def real_atoms(batch: Batch) -> torch.Tensor:
    """(N,) bool, all atoms but ghosts."""
    padding = padding_of(batch)
    return torch.ones_like(batch.batch, dtype=torch.bool) if padding is None else padding.atoms


def real_structures(batch: Batch) -> torch.Tensor:
    """(B,) bool, all structures but ghosts."""
    padding = padding_of(batch)
    if padding is None:
        return torch.ones(batch.num_graphs, dtype=torch.bool, device=batch.pos.device)
    return padding.structures


def corruption_of(batch: Batch) -> Corruption | None:
    """The batch's corruption record, or None for a batch that no training loader touched."""
    return batch.get(CORRUPTION)


def rows_of(batch: Batch) -> dict[str, Rows] | None:
    """Output -> the rows that count, where an output without rows is not computed.

    None for a batch that no training loader prepared, as at inference: all is computed but what serves training alone.
    """
    return batch.get(ROWS)


def holding(mask: torch.Tensor, listed: torch.Tensor | None, *, is_padded: bool = False) -> torch.Tensor:
    """(n,) int64 where a mask holds, in ascending order.

    Args:
        mask: bool, one-dimensional.
        listed: (n,) the same as a loader listed it, which a GPU takes on trust: looking would wait for it. None where
            there is no list, so that the device must be asked how many there are.
        is_padded: whether places follow in the list where the mask does not hold; they are returned too.

    Raises:
        ValueError: on a CPU, for a list of another mask.
    """
    if listed is not None and mask.is_cuda:
        return listed
    found = mask.nonzero().view(-1)
    if listed is None:
        return found
    rest = listed[len(found) :] if is_padded else listed[:0]
    if not torch.equal(found, listed[: len(listed) - len(rest)]) or bool(mask[rest].any()):
        raise ValueError(
            f"a batch lists {len(listed)} rows or edges that count, and its mask (`rows`) has {len(found)}, or others; "
            "list rows again where the mask changes (`Rows.listed`), and edges (`with_neighbours`)"
        )
    return listed


def free_atoms(batch: Batch) -> torch.Tensor:
    """(N,) bool, the atoms that may move; all real ones where the data set marks none as fixed."""
    return batch.fixed == 0 if "fixed" in batch else real_atoms(batch)  # ghosts are fixed


def corrupted_structures(batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    """(B,) bool, the structures with at least one atom of ``mask`` (N,)."""
    count = torch.zeros(batch.num_graphs, dtype=torch.long, device=mask.device)
    return count.index_add(0, batch.batch, mask.long()) > 0


def md_structures(batch: Batch) -> torch.Tensor:
    """(B,) bool, the structures that come from molecular dynamics; none where the data set does not say."""
    if MD in batch:
        return torch.as_tensor(batch[MD], dtype=torch.bool, device=batch.pos.device).view(-1)
    return torch.zeros(batch.num_graphs, dtype=torch.bool, device=batch.pos.device)


class Identifiers(NamedTuple):
    """What the structures of a batch are called, kept where a loader left it, on the CPU.

    Attributes:
        fields: name of the field -> an entry per structure.
        number: of structures.
    """

    fields: dict[str, Any]
    number: int


def identifiers(batch: Batch) -> Identifiers:
    """What the structures of a batch are called, by whatever fields the data set has; ghosts are not named."""
    padding = padding_of(batch)
    number = batch.num_graphs if padding is None else padding.num_structures
    return Identifiers({field: batch[field] for field in _IDENTIFIERS if field in batch}, number)


def names_of(known: Identifiers, indices: Iterable[int] | None = None) -> str:
    """Structures as a person can find them; all of them by default."""
    indices = range(known.number) if indices is None else list(indices)
    named = ({field: values[index] for field, values in known.fields.items()} for index in indices)
    return "; ".join(
        _words(one) or f"structure {index} of its batch" for one, index in zip(named, indices, strict=True)
    )


def structure_names(batch: Batch, indices: Iterable[int] | None = None) -> str:
    """Structures of a batch as a person can find them; all of them by default."""
    return names_of(identifiers(batch), indices)


def structure_name(structure: Data) -> str:
    """A structure that is in no batch yet, by the same identifiers."""
    return _words({field: structure[field] for field in _IDENTIFIERS if field in structure})


def _words(known: Mapping[str, Any]) -> str:
    values = {field: value.item() if torch.is_tensor(value) else value for field, value in known.items()}
    return ", ".join(f"{field} {value}" for field, value in values.items())
