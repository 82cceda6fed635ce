"""A network on the channels of a grid's points, between node features and node features.

    y = F^T silu( A silu( G x ) )            (N, L', C)  from  (N, L, C)

What acts on channels before and behind commutes with G and F (`dens_plugin.nn.equiformer_v2.degree_linear`), so that A
alone is applied to all points. EquiformerV2: arXiv:2306.12059. eSCN: arXiv:2302.03655.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.so2.grid_parts import grid_parts
from dens_plugin.nn.so2.tf32 import backward_as_forward

_GRID_BYTES = 2 << 20  # of the values on the grid at a time


def grid_mlp(
    features: torch.Tensor,
    middle: torch.Tensor,
    to_grid: torch.Tensor,
    from_grid: torch.Tensor,
    gates: torch.Tensor | None = None,
) -> torch.Tensor:
    """from_grid^T silu(middle silu(to_grid features)), without the grid of all nodes in memory.

    Args:
        features: (N, L, C).
        middle: (C, C) on the channels of a point.
        to_grid: (G, L).
        from_grid: (G, L').
        gates: (N, C), whose SiLU is put in front of the result; None for nothing.

    Returns:
        (N, L', C), or (N, 1 + L', C) with gates.
    """
    dtype = features.dtype
    out: torch.Tensor = _GridMLP.apply(features, middle.to(dtype), to_grid.to(dtype), from_grid.to(dtype), gates)
    return out


def _multiply(matrix: torch.Tensor, features: torch.Tensor, out: torch.Tensor) -> None:
    """Write the product of a matrix (L', L) with features (n, L, C) of each node into (n, L', C)."""
    torch.bmm(matrix.expand(len(features), *matrix.shape), features, out=out)


@backward_as_forward
class _GridMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        middle: torch.Tensor,
        to_grid: torch.Tensor,
        from_grid: torch.Tensor,
        gates: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(features, middle, to_grid, from_grid, gates)
        first_row = int(gates is not None)
        out = features.new_empty(len(features), first_row + from_grid.shape[1], features.shape[2])
        if gates is not None:
            torch.ops.aten.silu.out(gates, out=out[:, 0])
        for part in grid_parts(features, len(to_grid), _GRID_BYTES):
            first = functional.silu(torch.matmul(to_grid, features[part]), inplace=True)
            second = functional.silu(torch.matmul(first, middle.t()), inplace=True)
            _multiply(from_grid.t(), second, out[part, first_row:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, middle, to_grid, from_grid, gates = ctx.saved_tensors
        first_row = int(gates is not None)
        grad_features, grad_middle = torch.empty_like(features), torch.empty_like(middle)
        beta = 0
        for part in grid_parts(features, len(to_grid), _GRID_BYTES):
            before_first = torch.matmul(to_grid, features[part])
            first = functional.silu(before_first)
            before_second = torch.matmul(first, middle.t())
            of_grid = torch.matmul(from_grid, grad[part, first_row:])
            of_second = torch.ops.aten.silu_backward(of_grid, before_second)
            grad_middle.addmm_(of_second.flatten(0, 1).t(), first.flatten(0, 1), beta=beta)
            beta = 1
            of_first = torch.ops.aten.silu_backward(torch.matmul(of_second, middle), before_first)
            _multiply(to_grid.t(), of_first, grad_features[part])
        if beta == 0:  # there are no nodes
            grad_middle.zero_()
        of_gates = None if gates is None else torch.ops.aten.silu_backward(grad[:, 0], gates)
        return grad_features, grad_middle, None, None, of_gates
