"""One raw file of the OC20 S2EF release as graphs: labels checked, references subtracted, pickled for an LMDB file."""

from __future__ import annotations

from pickle import HIGHEST_PROTOCOL, dumps
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Data

from dens_plugin.cells import is_flat, whole_cell
from dens_plugin.data.release import LogLine, RawFile, read_frames, read_log

_LABELS = ("energy", "forces")
_VACUUM = 30.0  # Å, beyond the cutoff of any model


class Options(NamedTuple):
    """What the content of the data set depends on besides RAW.

    Attributes:
        ref_energy: Subtract the reference energy of the log from the energy.
        test: The frames carry no labels.
    """

    ref_energy: bool = True
    test: bool = False

    @property
    def needs_reference(self) -> bool:
        """Whether every line of a log must give a reference energy."""
        return self.ref_energy and not self.test


class RawGraphs(NamedTuple):
    """One raw file, ready to be written.

    Attributes:
        records: Pickled graphs.
        ids: Their lines in ``data_log``.
        natoms: Their numbers of atoms.
    """

    records: list[bytes]
    ids: list[str]
    natoms: list[int]


def read_graphs(pair: RawFile, options: Options) -> RawGraphs:
    """Read one raw file.

    Args:
        pair: The two files.
        options: What to make of them.

    Raises:
        ValueError: If the files cannot be read or do not agree, or a label is missing or not finite.
    """
    frames, lines = _read_pair(pair, options)
    to_graph = AtomsToGraphs(
        r_energy=not options.test, r_forces=not options.test, r_fixed=True, r_edges=False, r_distances=False
    )
    graphs = []
    for i, (atoms, line) in enumerate(zip(frames, lines, strict=True)):
        where = f"{pair.frames}, frame {i} (sid {line.sid}, fid {line.fid})"
        if not options.test:
            _require_labels(atoms, where)
        graphs.append(_graph(to_graph, _periodic(atoms, where), line, options))
    records = [dumps(graph, protocol=HIGHEST_PROTOCOL) for graph in graphs]
    return RawGraphs(records, [str(line) for line in lines], [len(atoms) for atoms in frames])


def _read_pair(pair: RawFile, options: Options) -> tuple[list[Atoms], list[LogLine]]:
    lines = read_log(pair.log, need_reference=options.needs_reference)
    frames = list(read_frames(pair.frames))
    if len(frames) != len(lines):
        raise ValueError(
            f"{pair.frames} has {len(frames)} frames, {pair.log} has {len(lines)} lines: they must agree, "
            "download or unpack both again."
        )
    return frames, lines


def _graph(to_graph: AtomsToGraphs, atoms: Atoms, line: LogLine, options: Options) -> Data:
    """One structure with the fields and types of fairchem's own OC20 data.

    A flag for the frames of molecular dynamics (the MD split) will be one more field here, beside ``sid`` and ``fid``.
    """
    graph = to_graph.convert(atoms)
    graph.tags = torch.tensor(atoms.get_tags(), dtype=torch.long)  # (N,)
    graph.sid, graph.fid = line.sid, line.fid
    if not options.test:
        reference = (line.reference or 0.0) if options.ref_energy else 0.0
        graph.energy = float(graph.energy) - reference  # eV
    return graph


def _periodic(atoms: Atoms, where: str) -> Atoms:
    """The frame in a cell that is periodic in all directions, as OC20's are, with vacuum where it is open."""
    cell = whole_cell(atoms.cell.array, atoms.pbc).copy()
    if is_flat(cell, atoms.pbc):
        raise ValueError(
            f"{where} is periodic and its cell has no volume: give it one, or set pbc to F along vectors that are zero."
        )
    if atoms.pbc.all():
        return atoms
    scaled = np.linalg.solve(cell.T, atoms.positions.T)  # (3, N)
    for axis in np.flatnonzero(~atoms.pbc):
        height = 1 / np.linalg.norm(np.linalg.inv(cell)[:, axis])  # Å between the faces
        cell[axis] *= np.ptp(scaled[axis]) + _VACUUM / height
    whole = atoms.copy()
    whole.calc = atoms.calc
    whole.set_cell(cell)
    whole.pbc = True
    return whole


def _require_labels(atoms: Atoms, where: str) -> None:
    results = atoms.calc.results if atoms.calc is not None else {}
    missing = [label for label in _LABELS if label not in results]
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(missing)}. If this is a test set, use --test-data.")
    for label in _LABELS:
        if not np.isfinite(results[label]).all():
            raise ValueError(f"{where} has NaN or infinite {label}: remove the frame from both files, or replace both.")
    if not np.isfinite(atoms.positions).all():
        raise ValueError(f"{where} has NaN or infinite positions: remove the frame from both files, or replace both.")
