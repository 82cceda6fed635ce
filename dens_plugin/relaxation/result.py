"""What a relaxation leaves behind: a record per structure, and all of them as one file."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from fairchem.core.modules.evaluator import Evaluator

from dens_plugin.cells import LEAST_VOLUME
from dens_plugin.relaxation.inputs import relaxed_labels
from dens_plugin.relaxation.minimiser import CONVERGED, STATUSES

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from dens_plugin.relaxation.minimiser import Outcome

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError)
_PER_ATOM = ("pos", "pos_initial", "pos_relaxed", "forces", "numbers", "fixed")


class Relaxations(NamedTuple):
    """B relaxed structures with N atoms in all; as a record, B is 1.

    Attributes:
        ids: (B,) names.
        status: (B,) ``converged``, ``out_of_steps``, ``not_finite`` or ``out_of_memory``.
        steps: (B,) taken.
        energy: (B,) eV, with references; of the last finite frame, NaN if there is none.
        energy_initial: (B,) eV, of the structure as it was given.
        fmax: (B,) eV/Å, the longest force on a free atom in the last finite frame.
        fmax_initial: (B,) eV/Å.
        energy_relaxed: (B,) eV, the label; NaN where there is none.
        natoms: (B,)
        cell: (B, 3, 3) Å.
        pos: (N, 3) Å, of the last finite frame, not wrapped.
        pos_initial: (N, 3) Å.
        pos_relaxed: (N, 3) Å, the label; NaN where there is none.
        forces: (N, 3) eV/Å, zero on fixed atoms.
        numbers: (N,) atomic numbers.
        fixed: (N,) bool.
    """

    ids: np.ndarray
    status: np.ndarray
    steps: np.ndarray
    energy: np.ndarray
    energy_initial: np.ndarray
    fmax: np.ndarray
    fmax_initial: np.ndarray
    energy_relaxed: np.ndarray
    natoms: np.ndarray
    cell: np.ndarray
    pos: np.ndarray
    pos_initial: np.ndarray
    pos_relaxed: np.ndarray
    forces: np.ndarray
    numbers: np.ndarray
    fixed: np.ndarray

    @property
    def converged(self) -> np.ndarray:
        """(B,) bool."""
        return self.status == CONVERGED

    @property
    def chunk_idx(self) -> np.ndarray:
        """(B - 1,) where `np.split` cuts the rows of atoms into structures."""
        return np.cumsum(self.natoms)[:-1]

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file that is there whole or not at all; it also holds ``converged`` and ``chunk_idx``."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        archive = io.BytesIO()  # numpy's archive complains a second time of a disk that is full
        np.savez(archive, **self._asdict(), converged=self.converged, chunk_idx=self.chunk_idx)
        with open(part, "wb") as file:
            file.write(archive.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def counts(self) -> dict[str, int]:
        """Status -> number of structures."""
        return {status: int((self.status == status).sum()) for status in STATUSES}

    def metrics(self) -> dict[str, float]:
        """fairchem's IS2RE and IS2RS metrics over structures with a label and a result; empty without labels.

        ``energy_mae`` in eV, ``energy_within_threshold`` (EwT, 0.02 eV), ``positions_mae`` in Å over free atoms,
        ``positions_average_distance_within_threshold`` (ADwT), and over how many structures: ``energy_count``,
        ``positions_count``.
        """
        known = np.isfinite(self.energy)
        with_energy = known & np.isfinite(self.energy_relaxed)
        placed = np.array([bool(np.isfinite(rows).all()) for rows in self._split("pos_relaxed")])
        free = np.array([not rows.all() for rows in self._split("fixed")])
        return self._energy_metrics(with_energy) | self._position_metrics(known & placed & free)

    def _energy_metrics(self, chosen: np.ndarray) -> dict[str, float]:
        if not chosen.any():
            return {}
        # In one shape: fairchem compares (B, 1) with (B,), every structure with every other.
        prediction, target = ({"energy": torch.from_numpy(v[chosen])} for v in (self.energy, self.energy_relaxed))
        found = Evaluator(task="is2re").eval(prediction, target)
        return {"energy_count": float(chosen.sum())} | {name: value["metric"] for name, value in found.items()}

    def _position_metrics(self, chosen: np.ndarray) -> dict[str, float]:
        if not chosen.any():
            return {}
        rows = np.repeat(chosen, self.natoms) & ~self.fixed
        cell = torch.from_numpy(self.cell[chosen])
        # Without a cell no distance is shorter around the corner, as in a huge one.
        cell = torch.where(
            (torch.linalg.det(cell).abs() < LEAST_VOLUME)[:, None, None], 1e4 * torch.eye(3, dtype=cell.dtype), cell
        )
        natoms = torch.tensor([(~rows).sum() for rows in self._split("fixed")])[torch.from_numpy(chosen)]
        common = {"cell": cell, "natoms": natoms, "pbc": torch.tensor([True, True, True])}
        prediction, target = (
            {"positions": torch.from_numpy(positions[rows]), **common} for positions in (self.pos, self.pos_relaxed)
        )
        found = Evaluator(task="is2rs").eval(prediction, target)
        return {"positions_count": float(chosen.sum())} | {name: value["metric"] for name, value in found.items()}

    def _split(self, name: str) -> list[np.ndarray]:
        return np.split(getattr(self, name), self.chunk_idx)


def record_of(name: str, outcome: Outcome, source: Data) -> Relaxations:
    """The record of one structure.

    Args:
        name: by which it is found.
        outcome: of its relaxation.
        source: as the data set has it, with labels.
    """
    structure, first, last = outcome.structure, outcome.frames[0], outcome.frames[-1]
    energy_relaxed, pos_relaxed = relaxed_labels(source)
    cell = structure.get("cell", torch.zeros(3, 3))
    return Relaxations(
        ids=np.array([name]),
        status=np.array([outcome.status]),
        steps=np.array([outcome.steps]),
        energy=np.array([last.energy]),
        energy_initial=np.array([first.energy]),
        fmax=np.array([last.fmax]),
        fmax_initial=np.array([first.fmax]),
        energy_relaxed=np.array([energy_relaxed]),
        natoms=np.array([len(structure.pos)]),
        cell=np.asarray(cell, dtype=np.float64).reshape(1, 3, 3),
        pos=last.pos,
        pos_initial=np.asarray(structure.pos),
        pos_relaxed=pos_relaxed,
        forces=last.forces,
        numbers=np.asarray(structure.atomic_numbers).astype(np.int64),
        fixed=np.asarray(structure.fixed) != 0,
    )


def joined(records: Sequence[Relaxations]) -> Relaxations:
    """All records as one, sorted by name."""
    records = sorted(records, key=lambda record: str(record.ids[0]))
    return Relaxations(*(np.concatenate(arrays) for arrays in zip(*records, strict=True)))


def load_relaxations(path: str | Path) -> Relaxations:
    """Read what `Relaxations.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no '{path}'; `dens relax` writes it when all structures are done")
    try:
        with np.load(path) as file:
            found = Relaxations(**{name: file[name] for name in Relaxations._fields})
    except _BROKEN as error:
        raise ValueError(f"'{path}' is not a whole result of `dens relax` ({error}); run that command again") from error
    _require_consistent(found, path)
    return found


def _require_consistent(found: Relaxations, path: Path) -> None:
    atoms = int(found.natoms.sum())
    expected: Mapping[str, int] = {name: atoms if name in _PER_ATOM else len(found.ids) for name in Relaxations._fields}
    wrong = [name for name, length in expected.items() if len(getattr(found, name)) != length]
    if wrong:
        raise ValueError(f"'{path}' has {len(getattr(found, wrong[0]))} rows of `{wrong[0]}`, not {expected[wrong[0]]}")
