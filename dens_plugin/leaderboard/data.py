"""What a test set calls its structures and how many atoms they have, to compare predictions with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dens_plugin.data.findings import Finding
from dens_plugin.data.sources import open_source
from dens_plugin.leaderboard.layout import Rules
from dens_plugin.leaderboard.split import SplitArrays, examples

PREDICT_FIXED_ATOMS = "task.predict_fixed_atoms"  # of the trainer: predictions for fixed atoms too


class TestSet(NamedTuple):
    """A data set of B structures.

    Attributes:
        path: where it lies.
        sids: (B,) text, of the systems.
        frames: (B,) text, ``sid_fid`` as fairchem's ``predict`` says, or ``sid`` where there is no fid.
        atoms: (B,) number of atoms.
        free: (B,) number of free atoms.
    """

    path: Path
    sids: np.ndarray
    frames: np.ndarray
    atoms: np.ndarray
    free: np.ndarray


def read_test_set(path: Path, *, progress: bool = False) -> TestSet:
    """Read identifiers and numbers of atoms of all structures.

    Args:
        path: whatever fairchem reads: LMDB files, an ASE database, a folder of files.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it cannot be read, or its structures have no ``sid``.
    """
    source = open_source(path)
    implied = None if source.format.endswith("lmdb") else 0  # fairchem's ASE data sets give every frame an fid
    sids, frames = [], []
    atoms, free = np.empty(source.length, np.int64), np.empty(source.length, np.int64)
    for index in tqdm(
        range(source.length), desc=f"ids of {path}", unit="structure", disable=None if progress else True
    ):
        structure = source.read(index)
        if structure.sid is None:
            raise ValueError(f"{path}: structure {index} has no sid to compare predictions by: leave out --data")
        fid = implied if structure.fid is None else structure.fid
        sids.append(str(structure.sid))
        frames.append(sids[-1] if fid is None else f"{sids[-1]}_{fid}")
        atoms[index], free[index] = len(structure.numbers), (~structure.fixed).sum()
    return TestSet(path, np.array(sids), np.array(frames), atoms, free)


def mismatches(arrays: SplitArrays, test_set: TestSet, rules: Rules) -> Iterator[Finding]:
    """How predictions, whose own form is right, differ from what the test set asks for."""
    ids = test_set.frames if rules.frames_in_ids else test_set.sids
    wanted, first = np.unique(ids, return_index=True)
    if len(wanted) < len(ids):
        yield Finding("error", f"{test_set.path} has {len(ids) - len(wanted):,} ids that are not unique")
        return
    order = np.argsort(arrays.ids, kind="stable")
    if not np.array_equal(arrays.ids[order], wanted):
        yield _other_ids(arrays.ids, wanted, test_set.path)
    elif rules.task.has_forces:
        yield from _other_atoms(arrays.rows[order], test_set, first, ids=wanted, rules=rules)


def _other_ids(ids: np.ndarray, wanted: np.ndarray, path: Path) -> Finding:
    missing, foreign = np.setdiff1d(wanted, ids), np.setdiff1d(ids, wanted)
    parts = [
        f"{len(group):,} {name} ({examples(group)})"
        for name, group in (("missing", missing), ("not in it", foreign))
        if len(group)
    ]
    return Finding("error", f"ids are not those of {path}: {', '.join(parts)}; predict that data set, or mend --data")


def _other_atoms(
    rows: np.ndarray, test_set: TestSet, order: np.ndarray, *, ids: np.ndarray, rules: Rules
) -> Iterator[Finding]:
    """Rows of forces of structures sorted by id against the test set's atoms in the same order."""
    atoms, free = test_set.atoms[order], test_set.free[order]
    wanted, other = (atoms, free) if rules.fixed_atoms else (free, atoms)
    if np.array_equal(rows, wanted):
        return
    if np.array_equal(rows, other):
        yield Finding("error", _which_atoms(rules))
        return
    wrong = rows != wanted
    yield Finding(
        "error",
        f"{wrong.sum():,} structures have another number of forces than {'' if rules.fixed_atoms else 'free '}atoms "
        f"in {test_set.path}, first {ids[wrong][0]}: {rows[wrong][0]} for {wanted[wrong][0]}",
    )


def _which_atoms(rules: Rules) -> str:
    if rules.fixed_atoms:
        return (
            f"forces of free atoms only, {rules.convention.name} wants those of all atoms: predict again with "
            f"--{PREDICT_FIXED_ATOMS}=True"
        )
    return (
        f"forces of all atoms, {rules.convention.name} wants those of free atoms only: predict again without "
        f"--{PREDICT_FIXED_ATOMS}"
    )
