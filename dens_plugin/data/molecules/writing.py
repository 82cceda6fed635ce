"""Writing frames as LMDB files that fairchem reads, and the numbers that scale their labels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Data

from dens_plugin.data.lmdb_file import LmdbWriter, write_metadata
from dens_plugin.data.molecules.files import Frames
from dens_plugin.data.structures import Structure


class Part(NamedTuple):
    """Frames of one file that go into one data set.

    Attributes:
        frames: The file.
        sid: What the file's structures are called; ``fid`` is a frame's index.
        indices: Of the frames, shape (n,).
    """

    frames: Frames
    sid: int
    indices: np.ndarray


class Normalizer(NamedTuple):
    """Mean and standard deviation of energies, in eV; forces have the mean 0 and the same deviation (eV/Å)."""

    mean: float
    stdev: float


def normalizer_of(part: Part) -> Normalizer:
    """The statistics of a training set; the sample deviation, 1 where it is 0."""
    energies = np.array([part.frames.read(index).energy for index in part.indices.tolist()])
    return Normalizer(float(energies.mean()), float(energies.std(ddof=min(1, len(energies) - 1))) or 1.0)


def write_normalizers(folder: Path, normalizer: Normalizer) -> None:
    """Write ``normalizer_energy.npz`` and ``normalizer_forces.npz``, each with ``mean`` and ``rmsd``."""
    for name, mean in (("energy", normalizer.mean), ("forces", 0.0)):
        with open(folder / f"normalizer_{name}.npz", "wb") as file:
            np.savez(file, mean=np.float32(mean), rmsd=np.float32(normalizer.stdev))


def write_part(folder: Path, part: Part, *, reference: float) -> None:
    """Write a data set: one LMDB file and its metadata.

    Args:
        folder: To make.
        part: What to write.
        reference: eV, subtracted from every energy.
    """
    folder.mkdir(parents=True)
    natoms: list[int] = []
    to_graph = AtomsToGraphs(r_edges=False, r_fixed=True, r_pbc=True)
    with LmdbWriter(folder / "data.0000.lmdb") as writer:
        for index in part.indices.tolist():
            structure = part.frames.read(index)
            writer.append(_graph(to_graph, structure, sid=part.sid, reference=reference))
            natoms.append(len(structure.numbers))
    write_metadata(folder, natoms)


def _graph(to_graph: AtomsToGraphs, structure: Structure, *, sid: int, reference: float) -> Data:
    """One structure with the fields and types of fairchem's own OC20 data, and ``pbc``."""
    atoms = Atoms(
        structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
        constraint=FixAtoms(mask=structure.fixed),
    )
    graph = to_graph.convert(atoms)
    graph.tags = torch.tensor(structure.tags, dtype=torch.long)  # (N,)
    assert structure.energy is not None  # the frames were checked
    graph.energy = structure.energy - reference  # eV
    graph.forces = torch.tensor(structure.forces, dtype=torch.float32)  # (N, 3) eV/Å
    graph.sid, graph.fid = sid, structure.fid
    return graph
