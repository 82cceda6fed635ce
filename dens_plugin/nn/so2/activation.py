"""Activations of an edge's features: a SiLU at the points of a grid on the sphere, or gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.kernels.availability import uses_triton
from dens_plugin.nn.kernels.s2_activation import s2_activation
from dens_plugin.nn.so2.grid_parts import grid_parts
from dens_plugin.nn.so2.layout import Layout

_GRID_BYTES = 4 << 20  # of the values on the grid at a time: they stay in a core's cache


class Activation(Protocol):
    """A function of gates and features, row by row."""

    @property
    def num_gates(self) -> int:
        """How many gates every channel has."""

    def __call__(self, gates: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(E, S, C) activated features.

        Args:
            gates: (E, num_gates C).
            features: (E, S, C).
        """


@dataclass(frozen=True)
class GridActivation:
    """y = F^T silu(G x); if it is separable, degree 0 is the SiLU of a gate instead.

    Separable S2 activation: EquiformerV2, arXiv:2306.12059; without the gate it is eSCN's, arXiv:2302.03655.

    Attributes:
        to_grid: (G, S) from coefficients to the G points of a grid.
        from_grid: (G, S) and back.
        is_separable: whether degree 0 has a gate.
    """

    to_grid: torch.Tensor
    from_grid: torch.Tensor
    is_separable: bool

    @property
    def num_gates(self) -> int:
        """One if separable."""
        return int(self.is_separable)

    def __call__(self, gates: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """As `Activation`'s."""
        if uses_triton(features):
            allow_tf32 = torch.backends.cuda.matmul.allow_tf32
            gates_or_none = gates if self.is_separable else None
            return s2_activation(features, gates_or_none, self.to_grid, self.from_grid, allow_tf32=allow_tf32)
        if not self.is_separable:
            return grid_silu(features, self.to_grid, self.from_grid)
        vectors = grid_silu(features, self.to_grid, self.from_grid[:, 1:])
        return torch.cat([functional.silu(gates)[:, None], vectors], dim=1)


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

    def __call__(self, gates: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """As `Activation`'s."""
        factors = torch.sigmoid(gates).view(len(gates), self.num_gates, features.shape[2])
        rows = [degree - 1 for degree, _ in self.layout.coefficients[1:]]
        return torch.cat([functional.silu(features[:, :1]), features[:, 1:] * factors[:, rows]], dim=1)


def activate(convolved: torch.Tensor, activation: Activation, num_coefficients: int) -> torch.Tensor:
    """(E, S, C) activated features.

    Args:
        convolved: (E, num_gates C + S C) gates and features side by side.
        activation: of both.
        num_coefficients: S.
    """
    channels = convolved.shape[1] // (num_coefficients + activation.num_gates)
    gates, features = convolved.split([activation.num_gates * channels, num_coefficients * channels], dim=1)
    return activation(gates, features.unflatten(1, (num_coefficients, channels)))


def grid_silu(features: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor) -> torch.Tensor:
    """from_grid^T silu(to_grid features), without the grid of all edges in memory.

    Args:
        features: (E, S, C).
        to_grid: (G, S).
        from_grid: (G, S').

    Returns:
        (E, S', C).
    """
    out: torch.Tensor = _GridSiLU.apply(features, to_grid.to(features.dtype), from_grid.to(features.dtype))
    return out


def grid_silu_backward(
    grad: torch.Tensor, features: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor
) -> torch.Tensor:
    """(E, S, C) gradient of the features of `grid_silu` from that of its result, (E, S', C)."""
    out = torch.empty_like(features)
    for part in grid_parts(features, len(to_grid), _GRID_BYTES):
        grid = torch.matmul(to_grid, features[part])
        of_grid = torch.ops.aten.silu_backward(torch.matmul(from_grid, grad[part]), grid)
        out[part] = torch.matmul(to_grid.t(), of_grid)
    return out


class _GridSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, to_grid, from_grid)
        out = features.new_empty(len(features), from_grid.shape[1], features.shape[2])
        for part in grid_parts(features, len(to_grid), _GRID_BYTES):
            grid = functional.silu(torch.matmul(to_grid, features[part]), inplace=True)
            out[part] = torch.matmul(from_grid.t(), grid)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, to_grid, from_grid = ctx.saved_tensors
        return grid_silu_backward(grad, features, to_grid, from_grid), None, None
