"""Batches, losses and comparisons for the values of the relatives' own codes (`golden/relatives`)."""

from __future__ import annotations

import copy

import torch
from torch_geometric.data import Batch, Data

from dens_plugin.fields import NOISE, ROWS, Rows
from dens_plugin.testing import assert_close

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}  # relative to the largest component
_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def cast(state, dtype=None):
    """A state dict in a precision, the default one if none is given."""
    return {key: value.to(dtype or torch.get_default_dtype()) for key, value in state.items()}


def batch_of(reference, outputs=("energy", "forces", NOISE)):
    """The molecules of a file in the default dtype, prepared to ask for everything."""
    inputs = reference["inputs"]
    counts = inputs["batch"].bincount().tolist()
    columns = zip(inputs["z"].split(counts), inputs["pos"].to(torch.get_default_dtype()).split(counts), strict=True)
    batch = Batch.from_data_list([Data(atomic_numbers=z, pos=pos, natoms=len(z)) for z, pos in columns])
    structures, atoms = torch.ones(batch.num_graphs, dtype=torch.bool), torch.ones(batch.num_nodes, dtype=torch.bool)
    masks = {name: structures if name == "energy" else atoms for name in outputs}
    batch[ROWS] = {name: Rows(mask, mask.sum()) for name, mask in masks.items()}
    return batch


def expected_of(reference):
    """Values of the precision that is the default."""
    return reference[_NAMES[torch.get_default_dtype()]]


def loss_of(reference, out):
    """The file's weighted sum of the outputs that it has."""
    weights = reference["loss_weights"]
    return sum((weights[f"w_{name}"].to(value) * value).sum() for name, value in out.items())


def assert_values(out, expected):
    """Each output of a model is the file's."""
    for name, value in out.items():
        assert_close(value, expected[name], TOLERANCE[torch.get_default_dtype()])


def assert_gradient_norms(gradients, expected, *, tolerance=None):
    """Norms of parameters' gradients, by the same names."""
    tolerance = tolerance or 50 * TOLERANCE[torch.get_default_dtype()]
    norms = {name: value.norm().item() for name, value in gradients.items()}
    assert norms.keys() == expected.keys()
    scale = max(expected.values())
    wrong = {
        name: (norms[name], value) for name, value in expected.items() if abs(norms[name] - value) > tolerance * scale
    }
    assert not wrong


def with_rows(batch, **rows):
    """The batch asking for other rows."""
    changed = copy.copy(batch)
    changed[ROWS] = rows
    return changed
