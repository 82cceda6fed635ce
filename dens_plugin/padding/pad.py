"""Padding: batches of different sizes made one size, that of a budget, by ghosts that count nowhere.

What a budget has room for beyond a batch goes into ghost structures behind its own (`ghosts.Ghosts`). They are ordinary
atoms, so that no network need know of them, and no edge leads from them to a real atom. No row of theirs counts:
`Rows.mask` is False, and counts are those of the real rows. Lists of rows and edges that count end with those of
ghosts, some of them several times.

Outputs, losses and gradients of real rows are those of the batch without padding, to rounding: sums have the same
terms, and products may be taken in another order for other sizes. What a network draws at random has other shapes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from dens_plugin.backbones.neighbours import Neighbours
from dens_plugin.fields import (
    CLEAN_ATOMS,
    CORRUPTION,
    MD,
    NEIGHBOURS,
    PADDING,
    ROWS,
    Corruption,
    Padding,
    Rows,
    corruption_of,
    padding_of,
    rows_of,
)
from dens_plugin.padding.budgets import Budget, neighbours_of
from dens_plugin.padding.ghosts import Ghosts

if TYPE_CHECKING:
    from torch_geometric.data import Batch

_SIDE = 100.0  # Å, of a ghost's cell
_OF_BATCH = {"ptr", "batch"}
_RECORDS = {CORRUPTION, ROWS, NEIGHBOURS, PADDING}
# Numbers of rows tell fields of atoms from others, but not in a batch of single atoms, or of three beside `pbc`.
_OF_ATOMS = {"pos", "atomic_numbers", "forces", "fixed", "tags", CLEAN_ATOMS}
_OF_STRUCTURES = {"natoms", "cell", "pbc", "energy", "stress", MD}


def pad(batch: Batch, budget: Budget) -> Batch:
    """The batch with ghosts behind its own structures, as many as the budget has room for.

    Fields with other rows than those of atoms or structures are left out: edges that the data set stores, for
    instance, where a model reads those of the record.

    Args:
        batch: with a record of its neighbours; it stays as it is.
        budget: that holds it.

    Raises:
        ValueError: for a batch without neighbours, one that was padded before, or one that the budget does not hold.
    """
    if padding_of(batch) is not None:
        raise ValueError("this batch was padded before; pad the one that it was made of")
    record, need = neighbours_of(batch), Budget.of(batch)
    if not budget.holds(need):
        raise ValueError(f"{budget!r} has no room for a batch that takes {need!r}, and for ghosts beside it")
    ghosts = Ghosts.between(need, budget)
    padded = _with_fields(batch, ghosts, record.search.cutoff)
    padded[PADDING] = Padding(
        torch.arange(budget.atoms, device=batch.pos.device) < need.atoms,
        torch.arange(budget.structures, device=batch.pos.device) < need.structures,
        need.atoms,
        need.structures,
    )
    corruption, rows = corruption_of(batch), rows_of(batch)
    if corruption is not None:
        padded[CORRUPTION] = _corruption(corruption, ghosts)
    if rows is not None:
        padded[ROWS] = {name: _rows(each, name, budget, ghosts) for name, each in rows.items()}
    padded[NEIGHBOURS] = _neighbours(record, padded, budget, ghosts)
    return padded


def without_ghosts(batch: Batch) -> Batch:
    """The real structures of a padded batch, without the records that loaders add; another batch as it is."""
    padding = padding_of(batch)
    if padding is None:
        return batch
    last = padding.num_structures
    real = copy.copy(batch)
    real._slice_dict = {key: starts[: last + 1] for key, starts in batch._slice_dict.items()}
    for key in set(batch.keys()) - _OF_BATCH:
        if key in _RECORDS:
            del real[key]
        elif key in batch._slice_dict:
            real[key] = batch[key][: int(batch._slice_dict[key][last])]
        else:
            is_of_atoms = _rows_of_field(batch, key) is batch.natoms
            real[key] = batch[key][: padding.num_atoms if is_of_atoms else last]
    real.ptr, real.batch, real._num_graphs = batch.ptr[: last + 1], batch.batch[: padding.num_atoms], last
    return real


def _with_fields(batch: Batch, ghosts: Ghosts, cutoff: float) -> Batch:
    """The batch with ghosts in its fields, and its records as they were."""
    padded = copy.copy(batch)
    padded._slice_dict, padded._inc_dict = dict(batch._slice_dict), dict(batch._inc_dict)
    for key in set(batch.keys()) - _OF_BATCH - _RECORDS:
        rows = _rows_of_field(batch, key)
        if rows is None:
            del padded[key]
            for known in (padded._slice_dict, padded._inc_dict):
                known.pop(key, None)
            continue
        sizes = ghosts.sizes if rows is batch.natoms else torch.full_like(ghosts.sizes, int(rows[0]))
        padded[key] = _filled(key, batch[key], sizes, ghosts, cutoff)
        if key in padded._slice_dict:
            padded._slice_dict[key] = _joined(batch._slice_dict[key], sizes)
        steps = padded._inc_dict.get(key)
        if steps is not None:
            padded._inc_dict[key] = torch.cat([steps, steps.new_zeros(len(sizes), *steps.shape[1:])])
    padded.ptr = _joined(batch.ptr, ghosts.sizes)
    padded.batch = torch.cat([batch.batch, ghosts.structures().to(batch.batch)])
    padded._num_graphs = len(padded.ptr) - 1
    return padded


def _rows_of_field(batch: Batch, key: str) -> torch.Tensor | None:
    """(B,) how many rows of a field each structure has: ``natoms`` itself, or one number; None for anything else."""
    value = batch[key]
    is_in_rows = isinstance(value, list) or (torch.is_tensor(value) and value.dim() > 0)
    if not is_in_rows or batch.__cat_dim__(key, value) != 0:
        return None
    counts = torch.ones_like(batch.natoms)
    if key in batch._slice_dict:
        counts = batch._slice_dict[key].diff().to(counts)
    elif len(value) != batch.num_graphs:
        counts = batch.natoms * (len(value) == len(batch.pos))
    is_of_atoms = torch.equal(counts, batch.natoms) and bool((counts != 1).any())
    if key in _OF_ATOMS or (is_of_atoms and key not in _OF_STRUCTURES):
        return batch.natoms
    return counts if bool((counts == counts[0]).all()) and counts[0] > 0 else None


def _filled(key: str, value: Any, sizes: torch.Tensor, ghosts: Ghosts, cutoff: float) -> Any:
    """A field with rows of ghosts behind it: nobody reads their values, but those of some fields must be possible."""
    count = int(sizes.sum())
    if isinstance(value, list):
        return [*value, *(value[-1:] * count)]
    rows = value.new_zeros(count, *value.shape[1:])
    if key == "pos":
        rows = ghosts.positions(cutoff).to(value)
    elif key == "atomic_numbers":
        rows = value[-1:].expand(count)  # an element that the network knows
    elif key == "natoms":
        rows = ghosts.sizes.to(value)
    elif key == "cell":
        rows = (torch.eye(3) * _SIDE).to(value).expand_as(rows)
    elif key == "fixed":
        rows = torch.ones_like(rows)
    elif key == CLEAN_ATOMS:
        rows = torch.arange(count).to(value) + ghosts.first_atom
    return torch.cat([value, rows])


def _corruption(corruption: Corruption, ghosts: Ghosts) -> Corruption:
    atoms = ghosts.num_atoms
    return Corruption(
        mask=torch.cat([corruption.mask, corruption.mask.new_zeros(atoms)]),
        noise=torch.cat([corruption.noise, corruption.noise.new_zeros(atoms, 3)]),
        sigma=torch.cat([corruption.sigma, corruption.sigma.new_ones(len(ghosts.sizes))]),  # targets divide by it
        forces=torch.cat([corruption.forces, corruption.forces.new_zeros(atoms, 3)]),
    )


def _rows(rows: Rows, name: str, budget: Budget, ghosts: Ghosts) -> Rows:
    """Rows of an output, whose list ends with ghosts."""
    is_of_atoms = name in budget.incoming
    count = ghosts.num_atoms if is_of_atoms else len(ghosts.sizes)
    real = rows.where()
    listed = (ghosts.rows_of_atoms if is_of_atoms else ghosts.rows_of_structures)(budget.rows[name] - len(real))
    return Rows(
        mask=torch.cat([rows.mask, rows.mask.new_zeros(count)]),
        count=rows.count,
        chosen=torch.cat([real, listed.to(real)]),
        weight=None if rows.weight is None else torch.cat([rows.weight, rows.weight.new_zeros(count)]),
        is_padded=True,
    )


def _neighbours(record: Neighbours, padded: Batch, budget: Budget, ghosts: Ghosts) -> Neighbours:
    """The record of a padded batch, whose rows are listed."""
    edges, offsets = record.edge_index, record.cell_offsets
    of_structures = torch.zeros(len(ghosts.sizes) - 1, dtype=torch.long), torch.tensor([ghosts.num_edges])
    found = (
        torch.cat([edges, ghosts.edge_index.to(edges)], dim=1),
        torch.cat([offsets, offsets.new_zeros(ghosts.num_edges, 3)]),
        torch.cat([record.neighbors, *(count.to(record.neighbors) for count in of_structures)]),
    )
    incoming = {}
    for name, size in budget.incoming.items():
        real, chosen = record.incoming[name], rows_of(padded)[name].where()
        added = ghosts.edges_to(chosen[chosen >= ghosts.first_atom].cpu(), size - len(real))
        incoming[name] = torch.cat([real, added.to(real)])
    pairs = record.pairs
    if pairs is not None:
        pairs = torch.cat([pairs, ghosts.some_edges(budget.pairs - len(pairs)).to(pairs)])
    return Neighbours.of(padded, record.search, found)._replace(incoming=incoming, pairs=pairs)


def _joined(starts: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """(B + G + 1,) first rows of structures, with those of ghosts behind them."""
    return torch.cat([starts, starts[-1] + sizes.cumsum(0).to(starts)])
