"""Writing frames as LMDB files that fairchem reads, and the numbers that scale their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Data

from dens_plugin.data.lmdb_file import LmdbWriter, write_metadata
from dens_plugin.data.molecules.frames import Frames
from dens_plugin.data.molecules.references import Labels, References
from dens_plugin.data.scales import divisor
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
    """Mean and standard deviation of a label, in its unit."""

    mean: float
    stdev: float


def normalizer_of(values: np.ndarray, *, size: float) -> Normalizer:
    """The statistics of a label; the sample deviation, 1 where it is only rounding.

    Args:
        values: As they are written, shape (n,).
        size: Of the largest before a reference was subtracted.
    """
    return Normalizer(float(values.mean()), divisor(values.std(ddof=min(1, len(values) - 1)), size=size))


def without_references(labels: Labels, references: References) -> dict[str, np.ndarray]:
    """The labels of a training set by output as they are written, shape (n,) each.

    Raises:
        ValueError: If an element has no reference.
    """
    for name, known in references.elements.items():
        missing = [symbol for symbol in labels.symbols if symbol not in known]
        if missing:
            raise ValueError(
                f"the reference energies ({name}) have no {', '.join(missing)}, which the data have; they have "
                f"{', '.join(known)}: give --reference FILE with all elements, or --reference elements for a fit."
            )
    written = {}
    for name, values in labels.values.items():
        atoms = references.elements.get(name, {})
        sums = labels.counts @ np.array([atoms.get(symbol, 0.0) for symbol in labels.symbols])
        written[name] = values - sums - (references.constant if name == "energy" else 0.0)
    return written


def write_normalizers(folder: Path, normalizers: Mapping[str, Normalizer], *, forces: bool) -> None:
    """Write ``normalizer_OUTPUT.npz``, each with ``mean`` and ``rmsd``.

    Forces have the mean 0 and the energy's deviation, as gradients of it must.
    """
    scales = dict(normalizers)
    if forces:
        scales["forces"] = Normalizer(0.0, normalizers["energy"].stdev)
    for name, scale in scales.items():
        with open(folder / f"normalizer_{name}.npz", "wb") as file:
            np.savez(file, mean=np.float32(scale.mean), rmsd=np.float32(scale.stdev))


def write_part(folder: Path, part: Part, *, references: References, charged: bool = False) -> None:
    """Write a data set: one LMDB file and its metadata.

    Args:
        folder: To make.
        part: What to write.
        references: Subtracted from the labels.
        charged: Whether records are to have a ``charge``.
    """
    folder.mkdir(parents=True)
    natoms: list[int] = []
    to_graph = AtomsToGraphs(r_edges=False, r_fixed=True, r_pbc=True)
    with LmdbWriter(folder / "data.0000.lmdb") as writer:
        for index in part.indices.tolist():
            structure = part.frames.read(index)
            graph = _graph(to_graph, structure, sid=part.sid, references=references)
            if charged:
                graph.charge = structure.charge  # e
            writer.append(graph)
            natoms.append(len(structure.numbers))
    write_metadata(folder, natoms)


def _graph(to_graph: AtomsToGraphs, structure: Structure, *, sid: int, references: References) -> Data:
    graph = record_of(to_graph, structure)
    assert structure.energy is not None  # the frames were checked
    graph.energy = structure.energy - references.of(structure, "energy")  # eV
    if structure.forces is not None:
        graph.forces = torch.tensor(structure.forces, dtype=torch.float32)  # (N, 3) eV/Å
    for name, value in structure.properties.items():
        graph[name] = value - references.of(structure, name)
    graph.sid, graph.fid = sid, structure.fid
    return graph


def record_of(to_graph: AtomsToGraphs, structure: Structure) -> Data:
    """A structure with the fields and types of fairchem's own OC20 data, and ``pbc``, without labels and names."""
    atoms = Atoms(
        structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
        constraint=FixAtoms(mask=structure.fixed),
    )
    graph = to_graph.convert(atoms)
    graph.tags = torch.tensor(structure.tags, dtype=torch.long)  # (N,)
    return graph
