"""ISO17: dynamics of 129 isomers of C7H10O2, a folder of ASE databases with the published split.

``reference.db`` has the frames for training and validation (``train_ids.txt``, ``validation_ids.txt``, ids from 1);
tests are ``test_within.db`` (other steps of the same isomers) and ``test_other.db`` (other isomers). Energies in eV are
called ``total_energy``, forces in eV/Å ``atomic_forces``.

References:
    Schütt et al., NeurIPS 2017, http://quantum-machine.org/datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dens_plugin.data.structures import Keys

REFERENCE, TEST = "reference.db", "test_other.db"
_IDS = {"train": "train_ids.txt", "val": "validation_ids.txt"}
_KEYS = Keys(energy="total_energy", forces="atomic_forces")


def is_iso17(path: Path) -> bool:
    """Whether a folder holds the databases."""
    return path.is_dir() and (path / REFERENCE).is_file()


def keys_of(names: Sequence[str], keys: Keys) -> Keys:
    """The set's names of labels, where a database has them and none of the usual ones."""
    is_set = _KEYS.energy in names and _KEYS.forces in names and "energy" not in names
    return (
        keys._replace(energy=_KEYS.energy, forces=_KEYS.forces) if is_set and not (keys.energy or keys.forces) else keys
    )


def published_parts(folder: Path) -> dict[str, np.ndarray]:
    """Indices of the frames for training and validation; empty without the lists of ids.

    Raises:
        ValueError: If a list holds something else than ids.
    """
    files = {name: folder / file for name, file in _IDS.items()}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {name: _indices(file) for name, file in files.items()}


def _indices(file: Path) -> np.ndarray:
    try:
        return np.sort(np.array([int(word) for word in file.read_text().split()], dtype=int)) - 1
    except ValueError as error:
        raise ValueError(f"{file} must have an id per line ({error}): copy or download it again.") from error
