"""The loss: for each target a coefficient times a sum over the rows that count, over a count from all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from fairchem.core.common import distutils

if TYPE_CHECKING:
    from dens_plugin.fields import Rows


class Term(NamedTuple):
    """One target's part of the loss.

    Attributes:
        coefficient: its weight.
        errors: (n,) or (n, k), the errors of the rows that count.
        count: () int64, the number of rows of this rank by which their sum is divided.
    """

    coefficient: float
    errors: torch.Tensor
    count: torch.Tensor


def term(
    coefficient: float,
    loss_fn: torch.nn.Module,
    *,
    prediction: torch.Tensor,
    target: torch.Tensor,
    rows: Rows,
    natoms: torch.Tensor,
) -> Term:
    """Errors of the rows that count.

    Args:
        coefficient: the target's weight.
        loss_fn: one of fairchem's, from (prediction, target, natoms) to errors per row or per component.
        prediction: (R, k), R atoms or structures.
        target: (R, k), normalised as the prediction is.
        rows: which rows count.
        natoms: (R,) atoms of each row's structure.

    Raises:
        ValueError: if prediction and target differ in shape.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, its target {tuple(target.shape)}")
    chosen = rows.where()
    errors = loss_fn(prediction[chosen], target[chosen], natoms[chosen])
    return Term(coefficient, errors, rows.count * errors.shape[1:].numel())


def total_loss(terms: list[Term]) -> torch.Tensor:
    """Sum of the terms, so scaled that DDP's average of gradients over ranks is the gradient of one global mean."""
    counts = torch.stack([term.count for term in terms])
    # A count of zero on all ranks means that nothing was summed, and the term is a differentiable zero.
    counts = distutils.all_reduce(counts, device=counts.device).clamp(min=1)
    world_size = distutils.get_world_size()
    return sum(
        term.coefficient * (term.errors.sum() * world_size / count) for term, count in zip(terms, counts, strict=True)
    )
