"""Weights of the degrees l as weights of all components, of which those of a degree have the same."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.choice import Machine, machine_for
from dens_plugin.nn.backends.triton import degree_sums as kernels


def copies_of(weight: torch.Tensor) -> torch.Tensor:
    """(..., (lmax + 1)^2, C', C), a copy for every component, of weights (..., lmax + 1, C', C) of the degrees."""
    out: torch.Tensor = _Copies.apply(weight)
    return out


@functools.cache
def _degrees(count: int, device: torch.device) -> torch.Tensor:
    """(L,) of all components; made once, as a copy to a GPU waits for it."""
    with torch.inference_mode(False):  # whose tensors no later training step could use
        return torch.tensor([degree for degree in range(count) for _ in range(2 * degree + 1)], device=device)


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return weight.index_select(-3, _degrees(weight.shape[-3], weight.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        if machine_for(grad) is Machine.TRITON:
            return kernels.degree_sums(grad)
        sizes = [2 * degree + 1 for degree in range(round(grad.shape[-3] ** 0.5))]
        return torch.stack([part.sum(-3) for part in grad.split(sizes, dim=-3)], dim=-3)
