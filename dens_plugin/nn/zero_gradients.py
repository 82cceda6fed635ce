"""Zero gradients for parameters that a shortened computation does not need.

Without a gradient an optimiser leaves a parameter alone; with a zero one it applies momentum and weight decay, and
distributed training expects one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def with_zero_gradients(output: torch.Tensor, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """``output``, whose backward pass gives every one of ``parameters`` a gradient of zeros besides its others."""
    out: torch.Tensor = _ZeroGradients.apply(output, *parameters)
    return out


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parameters)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
