"""Corrupting a batch: moving some of its atoms, and copies of its structures for methods that keep the clean ones."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from dens_plugin.fields import CORRUPTION, Corruption, corruption_of
from dens_plugin.objectives.base import Errors

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.noise import Sigma


def moved(
    batch: Batch, mask: torch.Tensor, *, normal: torch.Tensor, sigma: torch.Tensor, encoded: torch.Tensor | None = None
) -> Batch:
    """The batch with some atoms moved, and the record of it.

    Args:
        batch: stays as it is.
        mask: (N,) bool, the atoms to move.
        normal: (N, 3) standard normal numbers.
        sigma: (B,) Å, the standard deviation of each structure's noise.
        encoded: (N, 3) what the backbone is to encode of the atoms that move; nothing by default.
    """
    noise = where(mask, normal * sigma[batch.batch, None])
    encoded = torch.zeros_like(noise) if encoded is None else where(mask, encoded)
    corrupted = copy.copy(batch)
    corrupted.pos = batch.pos + noise
    corrupted[CORRUPTION] = Corruption(mask, noise, sigma, encoded)
    return corrupted


def record_of(batch: Batch) -> Corruption:
    """The corruption record of a batch that an objective prepared.

    Raises:
        ValueError: for another batch.
    """
    corruption = corruption_of(batch)
    if corruption is None:
        raise ValueError("this batch was not corrupted; pass it through `Objective.prepare` first")
    return corruption


def noise_scale(batch: Batch, sigma: Sigma) -> torch.Tensor:
    """(N, 1) Å, the unit in which the noise of a corrupted batch is predicted."""
    return sigma.scale(record_of(batch).sigma)[batch.batch, None]


def noise_errors(batch: Batch, predicted: torch.Tensor) -> Errors:
    """Errors in Å of the noise of the atoms that moved, as ``predicted`` (N, 3) in Å."""
    record = record_of(batch)
    return Errors((predicted - record.noise).abs(), record.mask)


def where(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` (N, 3) where ``mask`` (N,) holds, zero elsewhere."""
    return torch.where(mask[:, None], values, values.new_zeros(()))


def with_copies(batch: Batch, chosen: torch.Tensor) -> Batch:
    """A batch of all structures, followed by copies of the ``chosen`` (B,) bool ones, in order.

    One batch means one forward pass, one search for neighbours and one loss. All fields of the data are copied with
    their structures, but for stored edges, which are not those of moved atoms.
    """
    structures = torch.cat([torch.arange(batch.num_graphs), chosen.nonzero().view(-1).cpu()])
    extended = copy.copy(batch)
    for key in set(batch.keys()) - {"ptr", "batch"}:
        if key == "edge_index":
            del extended[key]
        else:
            extended[key] = _taken(batch[key], _starts(batch, key), structures)
    extended.ptr = _joined(batch.ptr, structures.to(batch.ptr.device))
    extended.batch = torch.repeat_interleave(extended.ptr.diff())
    extended._num_graphs = len(structures)
    extended._slice_dict = {key: _joined(starts, structures) for key, starts in batch._slice_dict.items()}
    extended._inc_dict = {key: None if value is None else value[structures] for key, value in batch._inc_dict.items()}
    return extended


def _starts(batch: Batch, key: str) -> torch.Tensor:
    """(B + 1,) the first row of each structure in a field, and its length."""
    if key in batch._slice_dict:
        return batch._slice_dict[key].long()
    return torch.arange(batch.num_graphs + 1) if len(batch[key]) == batch.num_graphs else batch.ptr.cpu()


def _taken(value: Any, starts: torch.Tensor, structures: torch.Tensor) -> Any:
    """The entries of some structures of a field whose structure s has the rows starts[s] to starts[s + 1]."""
    rows = _rows(starts, structures)
    return value[rows.to(value.device)] if torch.is_tensor(value) else [value[row] for row in rows.tolist()]


def _joined(starts: torch.Tensor, structures: torch.Tensor) -> torch.Tensor:
    """(n + 1,) the first rows of some structures that follow one another."""
    ends = starts.diff()[structures].cumsum(0)
    return torch.cat([ends.new_zeros(1), ends])


def _rows(starts: torch.Tensor, structures: torch.Tensor) -> torch.Tensor:
    """(n,) int64 the rows starts[s] to starts[s + 1] of each of some structures."""
    counts = starts.diff()[structures]
    ends = counts.cumsum(0)
    within = torch.arange(int(counts.sum()), device=starts.device) - (ends - counts).repeat_interleave(counts)
    return starts[structures].repeat_interleave(counts) + within
