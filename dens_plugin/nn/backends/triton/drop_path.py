r"""Stochastic depth: features of whole structures are dropped, and those of the others scaled up.

.. math:: y_n = x_n \, \lfloor k + u_{b(n)} \rfloor \, / \, k

with a draw u of each structure b, uniform in [0, 1), and the share k that is kept. Backward is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl

_BLOCK = 1024


def drop_path(features: torch.Tensor, draws: torch.Tensor, batch: torch.Tensor, keep: float) -> torch.Tensor:
    """``features`` (N, ...) kept or dropped.

    Args:
        features: (N, ...).
        draws: (B,), one for each structure.
        batch: (N,) structure of each atom.
        keep: k.
    """
    out: torch.Tensor = _DropPath.apply(features, draws, batch, keep)
    return out


class _DropPath(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, draws: torch.Tensor, batch: torch.Tensor, keep: float
    ) -> torch.Tensor:
        ctx.save_for_backward(draws, batch)
        ctx.keep = keep
        return _launch(features, draws, batch, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _launch(grad, *ctx.saved_tensors, ctx.keep), None, None, None


def _launch(features: torch.Tensor, draws: torch.Tensor, batch: torch.Tensor, keep: float) -> torch.Tensor:
    features = features.contiguous()
    out, numbers = torch.empty_like(features), features[0].numel() if len(features) else 0
    grid = (len(features), -(-numbers // _BLOCK))
    launch(_kernel, grid, (features, draws, batch.contiguous(), out), numbers=numbers, keep=keep, block=_BLOCK)
    return out


@jit
def _kernel(features, draws, batch, out, numbers: constexpr, keep: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    atom = tl.program_id(0).to(tl.int64)
    factor = tl.floor(keep + tl.load(draws + tl.load(batch + atom)).to(tl.float32)) / keep
    i = tl.program_id(1) * block + tl.arange(0, block)
    x = tl.load(features + atom * numbers + i, mask=i < numbers, other=0.0).to(tl.float32)
    tl.store(out + atom * numbers + i, (x * factor).to(out.dtype.element_ty), mask=i < numbers)
