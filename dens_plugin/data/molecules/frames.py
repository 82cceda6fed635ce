"""What every reader of molecular data gives: frames in eV and Å, whatever the file has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dens_plugin.data.molecules.units import Units
from dens_plugin.data.structures import Structure


class Frames(NamedTuple):
    """An open file.

    Attributes:
        path: Where it lies.
        length: Number of frames.
        read: The frame at an index, in eV and Å; ``fid`` is the index.
        units: What the file is in.
        remedy: What to do if it is not.
        several: Whether it is a published set of several compositions.
        forces: Whether frames are to have forces.
        grouped: Whether the frames of a molecule follow each other.
        parts: The set's own split: indices of ``train``, ``val``, ``test``, as far as it has one.
        test: The set's own file for test.
        references: Per element, published with the set: by output and symbol, in the output's unit.
        targets: Units of the further labels of a structure, by name.
        numbers: What the set calls its frames, shape (length,); None where that is the index.
        names: Of the values and columns of the first frame, for messages.
        notes: What a person should know of what was read.
    """

    path: Path
    length: int
    read: Callable[[int], Structure]
    units: Units
    remedy: str
    several: bool = False
    forces: bool = True
    grouped: bool = False
    parts: Mapping[str, np.ndarray] = {}
    test: Path | None = None
    references: Mapping[str, Mapping[str, float]] = {}
    targets: Mapping[str, str] = {}
    numbers: np.ndarray | None = None
    names: Sequence[str] = ()
    notes: Sequence[str] = ()


def molecule_frame(
    numbers: np.ndarray, positions: np.ndarray, *, energy: float, forces: np.ndarray | None, fid: int, **more: Any
) -> Structure:
    """A frame without cell and fixed atoms.

    Args:
        numbers: Atomic numbers, shape (N,).
        positions: Å, shape (N, 3).
        energy: eV.
        forces: eV/Å, shape (N, 3); None where there are none.
        fid: Its index.
        **more: Other fields of a :class:`~dens_plugin.data.structures.Structure`.
    """
    return Structure(
        numbers=numbers,
        positions=positions,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        fixed=np.zeros(len(numbers), dtype=bool),
        tags=np.zeros(len(numbers), dtype=int),
        energy=energy,
        forces=forces,
        sid=None,
        fid=fid,
        **more,
    )
