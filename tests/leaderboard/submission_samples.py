"""Predictions of tiny test sets, as fairchem's `predict` writes them, for tests of leaderboard files."""

from __future__ import annotations

import numpy as np
from samples import write_lmdb

from dens_plugin.data.lmdb_file import LmdbWriter
from dens_plugin.leaderboard.layout import OC20_SPLITS, OC22_SPLITS, rules_of
from dens_plugin.testing import random_structure

SIZE = 12  # structures in a split; two digits, so that text and number sort differently
OC20, OC22 = OC20_SPLITS, OC22_SPLITS
S2EF = rules_of("oc20-s2ef", "evalai", any_size=True)
IS2RE = rules_of("oc20-is2re", "evalai", any_size=True)
HUGGINGFACE = rules_of("oc20-s2ef", "huggingface", any_size=True)
OC22_S2EF = rules_of("oc22-s2ef", "evalai", any_size=True)


def structures(split):
    """The test set of a split, of 4 to 6 atoms, every other one fixed."""
    first = 100 * OC20.index(split) if split in OC20 else 900
    return [random_structure(4 + index % 3, seed=first + index, sid=first + index) for index in range(SIZE)]


def write_test_sets(folder, splits=OC20):
    return {split: write_lmdb(folder / "data" / split, structures(split)) for split in splits}


def predicted(split, *, all_atoms=False, dtype=np.float32):
    """What fairchem's `predict` makes of a split: sorted by id as text, energies (B, 1)."""
    rng = np.random.default_rng(OC20.index(split) if split in OC20 else 9)
    sets = sorted(structures(split), key=lambda structure: f"{structure.sid}_{structure.fid}")
    rows = [structure.natoms if all_atoms else int((structure.fixed == 0).sum()) for structure in sets]
    return {
        "ids": np.array([f"{structure.sid}_{structure.fid}" for structure in sets]),
        "energy": rng.normal(size=(SIZE, 1)).astype(dtype),
        "forces": rng.normal(size=(sum(rows), 3)).astype(dtype),
        "chunk_idx": np.cumsum(rows)[:-1],
    }


def write_predictions(folder, splits=OC20, **options):
    """Split -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    return {split: save(folder / f"{split}.npz", predicted(split, **options)) for split in splits}


def save(path, arrays):
    np.savez(path, **arrays)
    return path


def load(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def blocks(ids, forces, chunk_idx):
    """Id -> its forces."""
    return dict(zip(ids.tolist(), np.split(forces, chunk_idx), strict=True))


def write_plain_lmdb(folder, graphs):
    folder.mkdir(parents=True)
    with LmdbWriter(folder / "data.0000.lmdb") as writer:
        for graph in graphs:
            writer.append(graph)
    return folder
