"""An ordinary linear layer, whose backward pass multiplies in the precision of its forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.so2.tf32 import backward_as_forward


class Linear(NamedTuple):
    """y = W x + b.

    Attributes:
        weight: (D, C).
        bias: (D,).
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def to(self, dtype: torch.dtype) -> Linear:
        """In another precision."""
        return Linear(self.weight.to(dtype), self.bias.to(dtype))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) of (N, C)."""
        if not features.is_cuda:
            return functional.linear(features, *self)
        out: torch.Tensor = _Linear.apply(features, *self)
        return out


@backward_as_forward
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, weight)
        return torch.addmm(bias, features, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        of_features = grad @ weight if ctx.needs_input_grad[0] else None
        return of_features, grad.t() @ features, grad.sum(0)
