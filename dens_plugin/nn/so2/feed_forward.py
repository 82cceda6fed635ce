"""The feed-forward network of EquiformerV2 on a grid, with its linear layers folded where they commute with the grid.

    FFN(x) = U F( A_3 silu( A_2 silu( A_1 G V x ) ) )

G goes to the grid and F comes back; U and V act on the channels of each degree, A_1 to A_3 on those of each point.
What acts on channels commutes with G and F, so that V' = A_1 V and U' = U A_3 are multiplied once and only A_2 is
applied to all points. Source of the network: EquiformerV2, arXiv:2306.12059.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.so2.grid_parts import grid_parts
from dens_plugin.nn.so2.tf32 import backward_as_forward

_GRID_BYTES = 2 << 20  # of the values on the grid at a time


class DegreeLinear(NamedTuple):
    """A linear layer for each degree.

    Attributes:
        weight: (lmax + 1, C', C).
        bias: (C',) of degree 0.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def after(self, linear: torch.Tensor) -> DegreeLinear:
        """This one behind a linear layer (C, B) without a bias."""
        return DegreeLinear(self.weight @ linear, self.bias)

    def before(self, linear: torch.Tensor) -> DegreeLinear:
        """This one in front of a linear layer (D, C') without a bias."""
        return DegreeLinear(linear @ self.weight, linear @ self.bias)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(N, (lmax + 1)^2, C') of (N, (lmax + 1)^2, C)."""
        sizes = [2 * degree + 1 for degree in range(len(self.weight))]
        of_degrees = zip(features.split(sizes, dim=1), self.weight, strict=True)
        # Flat, as a product with a part that is strided would be one small product for each node.
        scalars, *others = (
            functional.linear(part.flatten(0, 1), weight).unflatten(0, part.shape[:2]) for part, weight in of_degrees
        )
        return torch.cat([scalars + self.bias, *others], dim=1)


def grid_mlp(
    features: torch.Tensor, middle: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor
) -> torch.Tensor:
    """from_grid^T silu(middle silu(to_grid features)), without the grid of all nodes in memory.

    Args:
        features: (N, L, C).
        middle: (C, C) on the channels of a point.
        to_grid: (G, L).
        from_grid: (G, L').

    Returns:
        (N, L', C).
    """
    dtype = features.dtype
    out: torch.Tensor = _GridMLP.apply(features, middle.to(dtype), to_grid.to(dtype), from_grid.to(dtype))
    return out


@backward_as_forward
class _GridMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, middle: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(features, middle, to_grid, from_grid)
        out = features.new_empty(len(features), from_grid.shape[1], features.shape[2])
        for part in grid_parts(features, len(to_grid), _GRID_BYTES):
            first = functional.silu(torch.matmul(to_grid, features[part]), inplace=True)
            second = functional.silu(torch.matmul(first, middle.t()), inplace=True)
            out[part] = torch.matmul(from_grid.t(), second)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, middle, to_grid, from_grid = ctx.saved_tensors
        grad_features, grad_middle = torch.empty_like(features), torch.zeros_like(middle)
        for part in grid_parts(features, len(to_grid), _GRID_BYTES):
            before_first = torch.matmul(to_grid, features[part])
            first = functional.silu(before_first)
            before_second = torch.matmul(first, middle.t())
            of_second = torch.ops.aten.silu_backward(torch.matmul(from_grid, grad[part]), before_second)
            grad_middle.addmm_(of_second.flatten(0, 1).t(), first.flatten(0, 1))
            of_first = torch.ops.aten.silu_backward(torch.matmul(of_second, middle), before_first)
            grad_features[part] = torch.matmul(to_grid.t(), of_first)
        return grad_features, grad_middle, None, None
