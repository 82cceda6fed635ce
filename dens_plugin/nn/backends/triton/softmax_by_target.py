r"""Softmax over the edges of each target atom.

.. math:: y_{eh} = \exp(x_{eh} - \max_{e'} x_{e'h}) \Big/ \sum_{e'} \exp(x_{e'h} - \max_{e''} x_{e''h})

over the edges e' that end where e does; backward dx = y (dy - sum of y dy). A program takes one atom and walks over its
edges in blocks, so that any number of them will do. The backward pass computes y again: differences of a y that was
rounded to bf16 would cost up to 0.5% of the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl

_EDGES = 32  # at once: the 20 neighbours of the paper's models are one block, and a warp reads it whole


def softmax_by_target(logits: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Normalise attention logits over the edges of each target.

    Args:
        logits: (E, H), edges sorted by target.
        offsets: (N+1,) pointers of the targets, `EdgesByAtom.offsets`.

    Returns:
        (E, H) of the logits' type, computed in float32.
    """
    out: torch.Tensor = _SoftmaxByTarget.apply(logits, offsets)
    return out


class _SoftmaxByTarget(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        logits, offsets = logits.contiguous(), offsets.contiguous()
        out = torch.empty_like(logits)
        _launch(_forward_kernel, logits, offsets, out)
        ctx.save_for_backward(logits, offsets)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, offsets = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        _launch(_backward_kernel, logits, offsets, grad.contiguous(), grad_logits)
        return grad_logits, None


def _launch(kernel: Any, first: torch.Tensor, offsets: torch.Tensor, *rest: torch.Tensor) -> None:
    heads = first.shape[1]
    head_block = 1 << (heads - 1).bit_length()
    constants = {"heads": heads, "head_block": head_block, "edge_block": _EDGES}
    launch(kernel, (offsets.shape[0] - 1,), (first, offsets, *rest), num_warps=1, **constants)


@jit
def _block(start, end, heads: constexpr, head_block: constexpr, edge_block: constexpr):  # type: ignore[no-untyped-def]
    """Offsets of a block of edges (edge_block, head_block) in an (E, H) tensor, and which exist."""
    edge = start + tl.arange(0, edge_block)[:, None]
    head = tl.arange(0, head_block)[None, :]
    return edge * heads + head, (edge < end) & (head < heads)


@jit
def _largest_and_sum(logits, start, end, heads: constexpr, head_block: constexpr, edge_block: constexpr):  # type: ignore[no-untyped-def]
    """Largest logit of an atom's edges and the sum of exponentials, (1, head_block) each."""
    largest = tl.full((1, head_block), float("-inf"), tl.float32)
    for first in range(start, end, edge_block):
        at, exists = _block(first, end, heads, head_block, edge_block)
        x = tl.load(logits + at, mask=exists, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, tl.max(x, axis=0, keep_dims=True))
    total = tl.zeros((1, head_block), tl.float32)
    for first in range(start, end, edge_block):
        at, exists = _block(first, end, heads, head_block, edge_block)
        x = tl.load(logits + at, mask=exists, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(exists, tl.exp(x - largest), 0.0), axis=0, keep_dims=True)
    return largest, total


@jit
def _forward_kernel(logits, offsets, out, heads: constexpr, head_block: constexpr, edge_block: constexpr):  # type: ignore[no-untyped-def]
    atom = tl.program_id(0)
    start = tl.load(offsets + atom)
    end = tl.load(offsets + atom + 1)
    largest, total = _largest_and_sum(logits, start, end, heads, head_block, edge_block)
    for first in range(start, end, edge_block):
        at, exists = _block(first, end, heads, head_block, edge_block)
        x = tl.load(logits + at, mask=exists, other=0.0).to(tl.float32)
        tl.store(out + at, (tl.exp(x - largest) / total).to(out.dtype.element_ty), mask=exists)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    logits, offsets, grad, grad_logits, heads: constexpr, head_block: constexpr, edge_block: constexpr
):
    atom = tl.program_id(0)
    start = tl.load(offsets + atom)
    end = tl.load(offsets + atom + 1)
    largest, total = _largest_and_sum(logits, start, end, heads, head_block, edge_block)
    mean = tl.zeros((1, head_block), tl.float32)  # sum of y dy
    for first in range(start, end, edge_block):
        at, exists = _block(first, end, heads, head_block, edge_block)
        y = tl.exp(tl.load(logits + at, mask=exists, other=0.0).to(tl.float32) - largest) / total
        dy = tl.load(grad + at, mask=exists, other=0.0).to(tl.float32)
        mean += tl.sum(tl.where(exists, y * dy, 0.0), axis=0, keep_dims=True)
    for first in range(start, end, edge_block):
        at, exists = _block(first, end, heads, head_block, edge_block)
        y = tl.exp(tl.load(logits + at, mask=exists, other=0.0).to(tl.float32) - largest) / total
        dy = tl.load(grad + at, mask=exists, other=0.0).to(tl.float32)
        tl.store(grad_logits + at, (y * (dy - mean)).to(grad_logits.dtype.element_ty), mask=exists)
