"""The structures that every contestant of a benchmark sees, clean and corrupted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from fairchem.core.datasets import LmdbDataset, data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Batch, Data

from dens_plugin import DeNS
from dens_plugin.fields import corruption_of, free_atoms
from dens_plugin.objectives.noise import StructureRandom

OBJECTIVE = DeNS()
SYNTHETIC = "synthetic"
DEFAULT_FOLDER = Path(__file__).parents[1] / "data" / "oc20_mini" / "train"

_METALS = ("Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al")
_CONVERT = AtomsToGraphs(r_energy=True, r_forces=True, r_edges=False, r_fixed=True, r_pbc=True)
_EPOCHS = 64  # candidates among which the corruption of average size is looked for


class Sample(NamedTuple):
    """One batch.

    Attributes:
        clean: as data sets give it.
        corrupted: the same structures, prepared by `DeNS` with the paper's settings.
    """

    clean: Batch
    corrupted: Batch


def draw_samples(source: str | None, *, count: int, size: int, seed: int, device: str) -> list[Sample]:
    """Batches with about equal numbers of atoms, of whose free atoms about p r = 0.25 are corrupted.

    Args:
        source: folder of an LMDB data set, ``synthetic``, or None for `DEFAULT_FOLDER` if it is there.
        count: number of batches.
        size: B, structures per batch.
        seed: the samples are a function of it and of the source.
        device: where the batches shall be.

    Raises:
        ValueError: if the folder does not exist or holds too few structures.
    """
    batches = [
        data_list_collater(structures, otf_graph=True).to(device)
        for structures in _balanced(_structures(source, count * size, seed), count)
    ]
    return _with_usual_corruption(batches, seed)


def draw_slabs(width: int, *, count: int, seed: int, device: str) -> list[Sample]:
    """Batches of one rattled slab of 4 width^2 + 2 atoms each, of whose free atoms about p r are corrupted."""
    rng = np.random.default_rng(seed)
    batches = [
        data_list_collater([_CONVERT.convert(_slab(rng, (width, width, 4)))], otf_graph=True).to(device)
        for _ in range(count)
    ]
    return _with_usual_corruption(batches, seed)


def corrupted_share(samples: list[Sample]) -> float:
    """The share of corrupted among the free atoms of all batches."""
    return sum(corrupted_atoms(sample) for sample in samples) / sum(
        int(free_atoms(sample.clean).sum()) for sample in samples
    )


def corrupted_atoms(sample: Sample) -> int:
    """The number of corrupted atoms of a batch."""
    return int(corruption_of(sample.corrupted).mask.sum())


def describe(samples: list[Sample], source: str | None) -> dict[str, object]:
    """What was measured on, for the record."""
    return {
        "source": SYNTHETIC if _is_synthetic(source) else "/".join(Path(source or DEFAULT_FOLDER).parts[-2:]),
        "atoms": [len(sample.clean.pos) for sample in samples],
        "free_atoms": [int(free_atoms(sample.clean).sum()) for sample in samples],
        "corrupted_atoms": [corrupted_atoms(sample) for sample in samples],
        "corrupted_share": corrupted_share(samples),
    }


def _with_usual_corruption(batches: list[Batch], seed: int) -> list[Sample]:
    wanted = OBJECTIVE.prob * (OBJECTIVE.corrupt_ratio or 1.0)
    candidates = (_prepared(batches, seed, epoch) for epoch in range(_EPOCHS))
    return min(candidates, key=lambda samples: abs(corrupted_share(samples) - wanted))


def _prepared(batches: list[Batch], seed: int, epoch: int) -> list[Sample]:
    return [Sample(batch, OBJECTIVE.prepare(batch, StructureRandom(seed, epoch))) for batch in batches]


def _is_synthetic(source: str | None) -> bool:
    return source == SYNTHETIC or (source is None and not DEFAULT_FOLDER.is_dir())


def _structures(source: str | None, count: int, seed: int) -> list[Data]:
    if _is_synthetic(source):
        return _synthetic(count, seed)
    folder = Path(source or DEFAULT_FOLDER)
    if not folder.is_dir():
        raise ValueError(f"--data: there is no folder '{folder}'; give one with *.lmdb files, or '{SYNTHETIC}'")
    dataset = LmdbDataset({"src": str(folder)})
    if len(dataset) < count:
        raise ValueError(f"'{folder}' has {len(dataset)} structures, {count} are needed; lower --steps or --batch")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return [dataset[index] for index in order[:count].tolist()]


def _balanced(structures: list[Data], count: int) -> list[list[Data]]:
    """``count`` batches of about equal size, as fairchem's loader makes them: dealt out by size, there and back."""
    by_size = sorted(structures, key=lambda structure: int(structure.natoms))
    rows = [by_size[start : start + count] for start in range(0, len(by_size), count)]
    turned = [row[::-1] if number % 2 else row for number, row in enumerate(rows)]
    return [list(batch) for batch in zip(*turned, strict=True)]


def _synthetic(count: int, seed: int) -> list[Data]:
    """Slabs of 4 to 8 layers, 50 to 98 atoms as in OC20."""
    rng = np.random.default_rng(seed)
    return [_CONVERT.convert(_slab(rng)) for _ in range(count)]


def _slab(rng: np.random.Generator, size: tuple[int, int, int] | None = None) -> Atoms:
    """CO on a rattled slab, of which the two upper layers are free."""
    metal = str(rng.choice(_METALS))
    atoms = fcc111(metal, size=size or (3, 4, int(rng.integers(4, 9))), vacuum=8.0)
    add_adsorbate(atoms, molecule("CO"), height=2.0, position="fcc")
    atoms.pbc = True
    fixed = atoms.get_tags() > 2  # ASE counts the layers from the top, 0 is the adsorbate
    atoms.positions[~fixed] += rng.normal(scale=0.1, size=((~fixed).sum(), 3))
    atoms.set_constraint(FixAtoms(mask=fixed))
    atoms.calc = EMT()
    return atoms
