"""Activations of an edge's features: a SiLU at the points of a grid on the sphere, or gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.cpu import s2_activation as s2_loops
from dens_plugin.nn.backends.triton.s2_activation import s2_activation
from dens_plugin.nn.so2.grid_matrix import GridMatrix
from dens_plugin.nn.so2.grid_parts import grid_parts
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.tf32 import backward_as_forward

_GRID_BYTES = 4 << 20  # of the values on the grid at a time: they stay in a core's cache


class Activation(Protocol):
    """A function of gates and features, row by row."""

    @property
    def num_gates(self) -> int:
        """How many gates every channel has."""

    def __call__(self, convolved: torch.Tensor, num_coefficients: int) -> torch.Tensor:
        """(E, S, C) activated features.

        Args:
            convolved: (E, num_gates C + S C) gates and features side by side.
            num_coefficients: S.
        """


@dataclass(frozen=True)
class GridActivation:
    """y = F^T silu(G x); if it is separable, degree 0 is the SiLU of a gate instead.

    Separable S2 activation: EquiformerV2, arXiv:2306.12059; without the gate it is eSCN's, arXiv:2302.03655.

    Attributes:
        to_grid: (G, S) from coefficients to the G points of a grid.
        from_grid: (G, S), whose transpose leads back.
        is_separable: whether degree 0 has a gate.
    """

    to_grid: GridMatrix
    from_grid: GridMatrix
    is_separable: bool

    @property
    def num_gates(self) -> int:
        """One if separable."""
        return int(self.is_separable)

    def __call__(self, convolved: torch.Tensor, num_coefficients: int) -> torch.Tensor:
        """As `Activation`'s."""
        if machine_for(convolved) is Machine.TRITON:
            matrices, allow_tf32 = (self.to_grid.dense, self.from_grid.dense), torch.backends.cuda.matmul.allow_tf32
            return s2_activation(convolved, *matrices, has_gates=self.is_separable, allow_tf32=allow_tf32)
        if not self.is_separable:
            _, features = _parts(convolved, 0, num_coefficients)
            return grid_silu(features, self.to_grid, self.from_grid)
        out: torch.Tensor = _SeparableSiLU.apply(convolved, num_coefficients, self.to_grid, self.from_grid)
        return out


@dataclass(frozen=True)
class GateActivation:
    """SiLU of degree 0; every other degree is multiplied by the sigmoid of a gate of its own.

    Attributes:
        layout: of the features.
    """

    layout: Layout

    @property
    def num_gates(self) -> int:
        """One for every degree above 0."""
        return self.layout.lmax

    def __call__(self, convolved: torch.Tensor, num_coefficients: int) -> torch.Tensor:
        """As `Activation`'s."""
        gates, features = _parts(convolved, self.num_gates, num_coefficients)
        factors = torch.sigmoid(gates).view(len(gates), self.num_gates, features.shape[2])
        orders = [factors[:, m - 1 :] for m in range(1, self.layout.mmax + 1) for _ in "+-"]  # not by a list of rows,
        factors = torch.cat([factors, *orders], dim=1)  # which would be copied to a GPU
        return torch.cat([functional.silu(features[:, :1]), features[:, 1:] * factors], dim=1)


def _parts(convolved: torch.Tensor, num_gates: int, num_coefficients: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates (E, num_gates C) and features (E, S, C), from both side by side."""
    channels = convolved.shape[1] // (num_coefficients + num_gates)
    gates, features = convolved.split([num_gates * channels, num_coefficients * channels], dim=1)
    return gates, features.unflatten(1, (num_coefficients, channels))


def grid_silu(features: torch.Tensor, to_grid: GridMatrix, from_grid: GridMatrix) -> torch.Tensor:
    """from_grid^T silu(to_grid features), without the grid of all edges in memory.

    Args:
        features: (E, S, C).
        to_grid: (G, S).
        from_grid: (G, S').

    Returns:
        (E, S', C).
    """
    out: torch.Tensor = _GridSiLU.apply(features, to_grid, from_grid)
    return out


def grid_silu_backward(
    grad: torch.Tensor, features: torch.Tensor, to_grid: GridMatrix, from_grid: GridMatrix
) -> torch.Tensor:
    """(E, S, C) gradient of the features of `grid_silu` from that of its result, (E, S', C)."""
    loops = _for_loops(features, to_grid, from_grid)
    out = features.new_empty(features.shape)
    if loops is not None:
        s2_loops.grid_silu_backward(grad, features, None, *loops, out, None)
        return out
    to_grid, from_grid = to_grid.to(features.dtype), from_grid.to(features.dtype)
    for part in grid_parts(features, len(to_grid.dense), _GRID_BYTES):
        of_grid = torch.ops.aten.silu_backward(from_grid.values(grad[part]), to_grid.values(features[part]))
        to_grid.write_coefficients(of_grid, out[part])
    return out


def _grid_silu(features: torch.Tensor, to_grid: GridMatrix, from_grid: GridMatrix) -> torch.Tensor:
    """`grid_silu`; autograd does not see it."""
    loops = _for_loops(features, to_grid, from_grid)
    if loops is not None:
        return s2_loops.grid_silu(features, None, *loops)
    to_grid, from_grid = to_grid.to(features.dtype), from_grid.to(features.dtype)
    out = features.new_empty(len(features), from_grid.dense.shape[1], features.shape[2])
    for part in grid_parts(features, len(to_grid.dense), _GRID_BYTES):
        from_grid.write_coefficients(functional.silu(to_grid.values(features[part]), inplace=True), out[part])
    return out


def _for_loops(
    features: torch.Tensor, to_grid: GridMatrix, from_grid: GridMatrix
) -> tuple[s2_loops.Grid, s2_loops.Grid] | None:
    """Both grids for the loops, or None where plain torch computes these features."""
    if (
        to_grid.for_loops is None
        or from_grid.for_loops is None
        or machine_for(features, to_grid.dense) is not Machine.CPU
    ):
        return None
    size, channels = features.shape[1:]
    fits = features.stride()[1:] == (channels, 1) and from_grid.dense.shape[1] == size
    return (to_grid.for_loops, from_grid.for_loops) if fits else None


@backward_as_forward
class _GridSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, to_grid: GridMatrix, from_grid: GridMatrix) -> torch.Tensor:
        ctx.save_for_backward(features)
        ctx.matrices = to_grid, from_grid
        return _grid_silu(features, to_grid, from_grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (features,) = ctx.saved_tensors
        return grid_silu_backward(grad, features, *ctx.matrices), None, None


@backward_as_forward
class _SeparableSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, convolved: torch.Tensor, num_coefficients: int, to_grid: GridMatrix, from_grid: GridMatrix
    ) -> torch.Tensor:
        ctx.save_for_backward(convolved)
        ctx.arguments = num_coefficients, to_grid, from_grid
        gates, features = _parts(convolved, 1, num_coefficients)
        loops = _for_loops(features, to_grid, from_grid)
        if loops is not None:
            return s2_loops.grid_silu(features, gates, *loops)
        out = _grid_silu(features, to_grid, from_grid)
        out[:, 0] = functional.silu(gates)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (convolved,), (num_coefficients, to_grid, from_grid) = ctx.saved_tensors, ctx.arguments
        gates, features = _parts(convolved, 1, num_coefficients)
        out = torch.empty_like(convolved)
        of_gates, of_features = _parts(out, 1, num_coefficients)
        loops = _for_loops(features, to_grid, from_grid)
        if loops is not None:
            s2_loops.grid_silu_backward(grad, features, gates, *loops, of_features, of_gates)
        else:
            of_gates[:] = torch.ops.aten.silu_backward(grad[:, 0], gates)
            of_features[:] = grid_silu_backward(grad[:, 1:], features, to_grid, from_grid.without_scalars())
        return out, None, None, None
