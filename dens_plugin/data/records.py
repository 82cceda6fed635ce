"""Structures as a run reads them: what cannot be read, or what no run can use, is named by file and index.

fairchem meets a damaged record, arrays of another length, an element that the model does not know or a cell without
volume with a traceback from the middle of a worker or a network, and a NaN label not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from torch.utils.data import Dataset

from dens_plugin.cells import is_flat
from dens_plugin.data.arrays import BREAKS
from dens_plugin.data.layout import completed
from dens_plugin.data.overlap import OVERLAP_REMEDY, overlap_of
from dens_plugin.data.places import place_of
from dens_plugin.data.structures import from_data
from dens_plugin.fields import structure_name

if TYPE_CHECKING:
    from torch_geometric.data import Data

LABELS = ("energy", "forces", "stress")

_REMEDY = "`dens data check` lists all such structures: remove them, or convert them anew"
_KEPT = 4096  # structures of a data set that stays in memory once it was read
_TOLD = 3  # structures that overlap, by each process
_SHORTEST = 1.1  # Å, of a lattice vector


class Limits(NamedTuple):
    """What a model can take.

    Attributes:
        elements: atomic numbers are below this.
        periodic: whether it looks for neighbours across the faces of the cell.
        molecular: whether it could and does not, so that it takes a crystal for a molecule.
    """

    elements: int = len(chemical_symbols)
    periodic: bool = False
    molecular: bool = False


class CheckedDataset(Dataset):
    """A data set of which every structure can be used, or says why not when it is read.

    Args:
        dataset: one of fairchem's.
        limits: of the model that is to see the structures.
        labels: names of the labels that must be finite where a structure has them.
        warns_of_overlaps: whether to look for atoms that overlap, a millisecond a structure.
    """

    def __init__(
        self, dataset: Dataset, limits: Limits, labels: Sequence[str] = (), *, warns_of_overlaps: bool = False
    ) -> None:
        self._dataset = dataset
        self._limits = limits
        self._labels = tuple(labels)
        self._first_with_pbc: dict[bool, str] = {}
        self._kept: dict[int, Data] | None = {} if len(dataset) <= _KEPT else None
        self._overlaps_to_tell = _TOLD if warns_of_overlaps else 0

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def dataset(self) -> Dataset:
        """That which is looked at."""
        return self._dataset

    def forget(self) -> None:
        """Read all structures anew: those of the data set have changed."""
        if self._kept is not None:
            self._kept.clear()

    def __getitem__(self, index: int) -> Data:
        """A structure, with the fields and types of fairchem's own records; small sets are read and looked at once.

        Raises:
            ValueError: if its record is damaged, its arrays do not belong together, or the model cannot take it.
        """
        if self._kept is None:
            return self._read(index)
        if index not in self._kept:
            self._kept[index] = self._read(index)
        return self._kept[index]

    def _read(self, index: int) -> Data:
        with self._told(index):
            structure = completed(self._dataset[index])
            problem = self._problem(structure) or self._pbc_of_some(structure, index)
        if problem:
            name = structure_name(structure)
            raise ValueError(f"{place_of(self._dataset, index)}{f' ({name})' if name else ''}: {problem}")
        if self._overlaps_to_tell:
            self._tell_overlap(structure, index)
        return structure

    def _tell_overlap(self, structure: Data, index: int) -> None:
        close = overlap_of(structure)
        if close is not None:
            self._overlaps_to_tell -= 1
            last = "" if self._overlaps_to_tell else " (others are not told)"
            logging.warning(
                f"{place_of(self._dataset, index)}: {close}: predictions for that are arbitrary; "
                f"{OVERLAP_REMEDY}{last}."
            )

    def raw(self, index: int) -> tuple[Data, str]:
        """A structure, without checking whether it can be used, and its file and index in words."""
        with self._told(index):
            return self._dataset[index], place_of(self._dataset, index)

    @contextmanager
    def _told(self, index: int) -> Iterator[None]:
        """Name the place of whatever goes wrong while a structure is read."""
        try:
            yield
        except (ValueError, OSError) as error:  # the data set's own words; a name is all they may lack
            raise ValueError(f"{place_of(self._dataset, index)}: {error}") from error
        except NameError as error:  # fairchem evaluates the names of transforms
            raise ValueError(
                f"{place_of(self._dataset, index)}: `transforms` names '{error.name}', which fairchem does not have; "
                "it has normalizer, element_references and decompose_tensor"
            ) from error
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
            raise ValueError(
                f"{place_of(self._dataset, index)} cannot be read ({type(error).__name__}: {error}); the file was cut, "
                "damaged or written by another version: copy it again, or convert the data anew"
            ) from error

    def _problem(self, structure: Data) -> str:
        """Why a structure cannot be used; empty if it can."""
        known = from_data(structure)
        for name, kind in BREAKS.items():
            details = kind.details(known)
            if details:
                return f"{name}: {details}; {_REMEDY}"
        if len(known.numbers) == 0 or int(structure.natoms) != len(known.numbers):
            return f"`natoms` is {int(structure.natoms)} and there are {len(known.numbers)} atoms; {_REMEDY}"
        for name in ("pos", *self._labels):
            if name in structure and not np.isfinite(np.asarray(structure[name])).all():
                return f"`{name}` is NaN or infinite; {_REMEDY}"
        return _beyond(structure, self._limits)

    def _pbc_of_some(self, structure: Data, index: int) -> str:
        """What is wrong if this structure says how it is periodic and one before did not, or the other way round.

        A batch takes its fields from its first structure, and one without ``pbc`` is periodic in all directions.
        """
        has = "pbc" in structure
        if has not in self._first_with_pbc:
            self._first_with_pbc[has] = place_of(self._dataset, index)
        if len(self._first_with_pbc) < 2:
            return ""
        return (
            f"it has {'a' if has else 'no'} `pbc` and {self._first_with_pbc[not has]} has {'none' if has else 'one'}; "
            "give it to all structures of a data set, or to none"
        )


def require_structures(dataset: Sized, where: str) -> None:
    """Raise ValueError for a data set without structures; ``where`` names it."""
    if len(dataset) == 0:
        raise ValueError(
            f"{where} holds no structures: give another data set, or choose more of it (`first_n`, `max_atoms`)"
        )


def _beyond(structure: Data, limits: Limits) -> str:
    """What of a structure a model cannot take; empty if it can."""
    highest = int(structure.atomic_numbers.max())
    if highest >= limits.elements:
        return (
            f"the model knows the elements 1 to {limits.elements - 1}, and it has {highest}; set max_num_elements of "
            f"the model to {highest + 1} or more (PaiNN's key: num_elements, {highest} or more), or remove it"
        )
    if limits.molecular and "pbc" in structure and torch.as_tensor(structure.pbc).any():
        return (
            "it is periodic (pbc), and the model would take it for a molecule; set `use_pbc: true` in the model, or "
            "its pbc to false if it is one"
        )
    if limits.periodic and _is_flat(structure):
        return (
            "it is periodic by the model (use_pbc) and its cell has no volume; set `use_pbc: false` in the model for "
            "molecules, or its pbc to false along vectors that are zero, or give it its cell"
        )
    if limits.periodic and _has_shrunk(structure):
        return (
            f"it is periodic along a vector shorter than {_SHORTEST:g} Å, as ASE makes of one that is zero; set its "
            "pbc to false along it, or give it its cell"
        )
    return ""


def _has_shrunk(structure: Data) -> bool:
    """Whether a periodic vector is too short for any crystal: fairchem completes cells also where they are periodic."""
    if "cell" not in structure:
        return False
    lengths = torch.as_tensor(structure.cell).reshape(3, 3).norm(dim=1)
    periodic = torch.as_tensor(structure.pbc).reshape(3) if "pbc" in structure else torch.ones(3, dtype=torch.bool)
    return bool((periodic & (lengths < _SHORTEST)).any())


def _is_flat(structure: Data) -> bool:
    """Whether neighbours across the faces of a cell without volume are asked for; all is periodic that says nothing."""
    if "pbc" in structure and not torch.as_tensor(structure.pbc).any():
        return False
    if "cell" not in structure:
        return True
    periodic = torch.as_tensor(structure.pbc).reshape(3) if "pbc" in structure else torch.ones(3, dtype=torch.bool)
    return is_flat(torch.as_tensor(structure.cell).reshape(3, 3).numpy(), periodic.numpy())
