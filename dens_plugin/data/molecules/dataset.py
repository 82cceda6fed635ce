"""``format: frames``: a file of structures as a data set, without LMDBs in between.

For validation, prediction and relaxation. Training needs what `dens data molecules` does besides: a split, checks of
every frame, and energies without the large part that float32 cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.base_dataset import BaseDataset
from fairchem.core.preprocessing import AtomsToGraphs
from torch.utils.data import Subset

from dens_plugin.data.molecules.files import open_frames
from dens_plugin.data.molecules.writing import record_of
from dens_plugin.data.records import CheckedDataset
from dens_plugin.data.structures import Keys
from dens_plugin.settings import suggestion

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from torch_geometric.data import Data

FORMAT = "frames"
OPTIONS = ("units", "energy_key", "forces_key")  # of the data set's block, beside fairchem's
_COMPRESSIONS = (".xz", ".gz", ".bz2")
_SUFFIXES = (".extxyz", ".xyz", ".npz")
_OF_OTHERS = (".traj", ".db", ".h5", ".hdf5")  # which other data sets read as well


@registry.register_dataset(FORMAT)
class FramesDataset(BaseDataset):
    """The frames of one file that `dens data molecules` reads: extended XYZ, npz of MD17, ASE's files and others.

    Energies are those of the file less ``missing`` of the structure, as they were in the model's training data.

    Args:
        config: ``src``, and ``units``, ``energy_key`` and ``forces_key`` where the file does not say them.

    Raises:
        ValueError: if the file cannot be read, or holds no frames.
    """

    missing: Callable[[Iterable[int]], float] | None = None  # of atomic numbers, eV

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        if len(self.paths) != 1:
            raise ValueError(f"`format: {FORMAT}` reads one file, got {len(self.paths)}; put the frames into one")
        keys = Keys(energy=config.get("energy_key"), forces=config.get("forces_key"))
        self._frames = open_frames(
            self.paths[0], units=config.get("units"), option="`units` of the data set", keys=keys
        )
        _require_names(keys, self._frames.names, self.paths[0])
        self._to_graph = AtomsToGraphs(r_edges=False, r_fixed=True, r_pbc=True)
        self.num_samples = self._frames.length
        if self.num_samples == 0:
            raise ValueError(f"'{self.paths[0]}' holds no frames")

    @property
    def _metadata(self) -> dict[str, Any]:
        """None: fairchem would look for a file of sizes, and warn that there is none."""
        return {}

    def __getitem__(self, idx: int) -> Data:
        """A frame as fairchem's own records are; ``sid`` is its index where the file gives it none."""
        structure = self._frames.read(int(idx))
        record = record_of(self._to_graph, structure)
        is_named = structure.sid not in (None, str(self.paths[0]))
        record.sid = structure.sid if is_named else int(idx)
        if is_named:
            record.fid = int(idx)
        if structure.energy is not None:
            record.energy = structure.energy - (self.missing(structure.numbers) if self.missing else 0.0)
        if structure.forces is not None:
            record.forces = torch.tensor(structure.forces, dtype=torch.float32)  # (N, 3) eV/Å
        return record


def _require_names(keys: Keys, names: Sequence[str], path: Path) -> None:
    """Raise ValueError for a label that a file, which says its names, does not have."""
    for option, name in (("energy_key", keys.energy), ("forces_key", keys.forces)):
        if name is not None and names and name not in names:
            raise ValueError(f"{option}: the first frame of '{path}' has no '{name}'; {suggestion(name, names)}")


def is_frames_file(source: Any) -> bool:
    """Whether a path, by its name, is of a file that `FramesDataset` reads and no other data set does."""
    return isinstance(source, (str, Path)) and _suffix(source) in _SUFFIXES


def holds_frames(source: str | Path) -> bool:
    """Whether a path, by its name, is of a file that `FramesDataset` reads and that is no LMDB."""
    return _suffix(source) in (*_SUFFIXES, *_OF_OTHERS)


def _suffix(source: str | Path) -> str:
    """The end of a file's name without that of its compression, in small letters."""
    suffixes = [suffix for suffix in map(str.lower, Path(source).suffixes) if suffix not in _COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def with_references(dataset: Dataset | None, missing: Callable[[Iterable[int]], float]) -> None:
    """Let a `FramesDataset` subtract from energies what those of the training data lack.

    Args:
        dataset: it, what was chosen of it, or a `CheckedDataset` of either, which forgets what it read before.
        missing: of atomic numbers, eV.
    """
    checked = [dataset] if isinstance(dataset, CheckedDataset) else []
    while isinstance(dataset, (Subset, CheckedDataset)):
        dataset = dataset.dataset
    if isinstance(dataset, FramesDataset):
        dataset.missing = missing
        for each in checked:
            each.forget()
