"""Weights of the degrees l as weights of all components, of which those of a degree have the same."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.triton import degree_sums as kernels


def copies_of(weight: torch.Tensor) -> torch.Tensor:
    """(..., (lmax + 1)^2, C', C), a copy for every component, of weights (..., lmax + 1, C', C) of the degrees."""
    out: torch.Tensor = _Copies.apply(weight)
    return out


def copied(weight: torch.Tensor, lowest: int = 0) -> torch.Tensor:
    """As `copies_of`, of the degrees from a lowest one on; autograd does not see it."""
    return weight.index_select(-3, _places(weight.shape[-3], lowest, weight.device))


def summed(of_components: torch.Tensor, lowest: int = 0) -> torch.Tensor:
    """The transpose of `copied`: sums over the components of each degree, in a fixed order."""
    if machine_for(of_components) is Machine.TRITON:
        return kernels.degree_sums(of_components, lowest)
    count = math.isqrt(of_components.shape[-3] + lowest**2)
    parts = of_components.split([2 * degree + 1 for degree in range(lowest, count)], dim=-3)
    return torch.stack([part.sum(-3) for part in parts], dim=-3)


@functools.cache
def _places(count: int, lowest: int, device: torch.device) -> torch.Tensor:
    """Number of every component's degree; made once, as a copy to a GPU waits for it."""
    numbers = [number for number in range(count) for _ in range(2 * (number + lowest) + 1)]
    with torch.inference_mode(False):  # whose tensors no later training step could use
        return torch.tensor(numbers, device=device)


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return copied(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return summed(grad)
