"""Runs on records that other converters wrote: the same run as on fairchem's own."""

from __future__ import annotations

import numpy as np
import pytest
from samples import write_lmdb

from dens_plugin.testing import random_structure


def write_all(root, change):
    structures = [random_structure(5 + index % 4, seed=index, sid=index) for index in range(18)]
    for structure in structures:
        change(structure)
    write_lmdb(root / "train", structures[:12])
    write_lmdb(root / "val", structures[12:])
    return root


def without_neutral(structure):
    del structure.fixed
    del structure.tags


def of_numpy(structure):
    structure.pos, structure.forces = structure.pos.double().numpy(), structure.forces.double().numpy()
    structure.energy = np.float64(structure.energy)
    structure.cell = structure.cell.view(3, 3)


def free(structure):
    structure.fixed[:] = 0


def trained(config, build, root, change):
    """The validation errors after a few steps."""
    folder = write_all(root, change)
    for split in ("train", "val"):
        config["dataset"][split]["src"] = str(folder / split)
    trainer = build(config)
    trainer.train()
    metrics = trainer.validate(split="val")
    return {name: metric["metric"] for name, metric in metrics.items()}


@pytest.mark.parametrize("change", [without_neutral, of_numpy])
def test_training_and_validation(change, config, build, tmp_path):
    both = (lambda s: (free(s), change(s))) if change is of_numpy else change
    expected = trained(config, build, tmp_path / "plain", free)
    assert trained(config, build, tmp_path / "others", both) == pytest.approx(expected, rel=1e-4)
