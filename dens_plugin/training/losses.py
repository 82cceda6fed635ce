"""The loss: for each output a coefficient times a sum over the rows that count, over a count from all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from torch import nn

if TYPE_CHECKING:
    from dens_plugin.fields import Rows


class Term(NamedTuple):
    """One output's part of the loss.

    Attributes:
        coefficient: its weight, () where a captured step reads it.
        errors: (n,) or (n, k), the errors of the rows that count.
        count: () int64, the number of rows of this rank by which their sum is divided.
    """

    coefficient: float | torch.Tensor
    errors: torch.Tensor
    count: torch.Tensor


class Loss(NamedTuple):
    """The loss of a batch, as all ranks see it.

    Attributes:
        value: () what to differentiate.
        bad: () bool, whether the loss of any rank is NaN or infinite.
    """

    value: torch.Tensor
    bad: torch.Tensor


@registry.register_loss("squared_norm")
class SquaredNormLoss(nn.Module):
    """The squared 2-norm of each row's error, not divided by the number of components."""

    def forward(self, pred: torch.Tensor, target: torch.Tensor, natoms: torch.Tensor) -> torch.Tensor:
        """(R,) from (R, k)."""
        return (pred - target).square().sum(dim=-1)


def term(
    coefficient: float | torch.Tensor,
    loss_fn: nn.Module,
    *,
    prediction: torch.Tensor,
    target: torch.Tensor,
    rows: Rows,
    natoms: torch.Tensor,
) -> Term:
    """Errors of the rows that count.

    Args:
        coefficient: the output's weight.
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
    values = prediction[chosen], target[chosen]
    if rows.is_padded:  # before the error, whose gradient at ghosts could be NaN
        counts = rows.mask[chosen, None]
        values = tuple(torch.where(counts, value, value.new_zeros(())) for value in values)
    errors = loss_fn(*values, natoms[chosen])
    if rows.weight is not None:
        errors = errors * rows.weight[chosen].view(-1, *[1] * (errors.dim() - 1))
    return Term(coefficient, errors, rows.count * errors.shape[1:].numel())


def total_loss(terms: list[Term], *, is_told: bool = False) -> Loss:
    """Sum of the terms, so scaled that DDP's average of gradients over ranks is the gradient of one global mean.

    Counts and the word of each rank whether its errors are finite go around in one message.

    Args:
        terms: of this rank.
        is_told: whether counts are of all ranks already, and the word of this rank goes around later, as in a captured
            step, which sends nothing.
    """
    sums = [term.errors.sum() for term in terms]
    bad = ~torch.isfinite(torch.stack(sums).detach()).all()
    told = torch.stack([*(term.count for term in terms), bad.long()])
    *counts, bad_ranks = told if is_told else distutils.all_reduce(told, device=told.device)
    world_size = distutils.get_world_size()
    # A count of zero on all ranks means that nothing was summed, and the term is a differentiable zero.
    value = sum(
        _times(term.coefficient, total * world_size / count.clamp(min=1))
        for term, total, count in zip(terms, sums, counts, strict=True)
    )
    return Loss(value, bad_ranks > 0)


def _times(coefficient: float | torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The product in the precision of the value, as with a Python number."""
    return (coefficient.to(value.dtype) if isinstance(coefficient, torch.Tensor) else coefficient) * value
