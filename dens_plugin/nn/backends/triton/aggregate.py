r"""Sum of weighted messages over an atom's edges, rotated back from the edges' frames.

.. math:: y_{nlc} = \sum_{e \to n} \sum_s D_{esl} \, k_s \, w_{e h(c)} \, v_{esc}

with the rotation D in the order of `packing`, attention weights w of H heads with V channels each, and the scale k of
truncated orders. A program takes one atom, degree and some channels, and adds its edges one by one: no message in the
global frame is in memory, and no atomics make the sum depend on luck. Backward, a program takes one edge, rotates the
gradient of its target, and gets both

.. math:: dv_{esc} = k_s w_{e h(c)} \sum_l D_{esl} \, dy_{nlc}, \qquad
    dw_{eh} = \sum_{c \in h} \sum_s k_s v_{esc} \sum_l D_{esl} \, dy_{nlc} .

Without attention w is 1, and the backward pass reads no values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl
from dens_plugin.nn.backends.triton.packing import coefficient_of, degrees, order_of
from dens_plugin.nn.backends.triton.rotation import rotate_degree, rotation_constants


def aggregate(
    values: torch.Tensor,
    weights: torch.Tensor | None,
    rotation: torch.Tensor,
    scale: torch.Tensor,
    offsets: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """Rotate weighted messages back and sum them at their targets.

    Args:
        values: (E, S, H V) messages of edges sorted by target, head by head.
        weights: (E, H) attention weights; None for a plain sum.
        rotation: (E, S, L) in the order of `packing`; it has no gradient.
        scale: (S,) factors of the coefficients; they have no gradient.
        offsets: (N+1,) first edge of every target, and E.
        target: (E,) number of every edge's target.

    Returns:
        (N, L, H V) in float32 (float64 for float64), zero at atoms without edges.

    Raises:
        ValueError: if S and L fit no largest degree and order, the channels are not a multiple of the heads, or the
            shapes do not fit each other.
    """
    _check(values, weights, rotation, scale)
    out: torch.Tensor = _Aggregate.apply(values, weights, rotation, scale, offsets, target)
    return out


def _check(values: torch.Tensor, weights: torch.Tensor | None, rotation: torch.Tensor, scale: torch.Tensor) -> None:
    edges, coefficients, channels = values.shape
    degrees(coefficients, rotation.shape[2])
    expected = {
        "rotation": (rotation, (edges, coefficients, rotation.shape[2])),
        "scale": (scale, (coefficients,)),
    }
    if weights is not None:
        expected["weights"] = weights, (edges, weights.shape[1])
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} must have shape {shape}")
    if weights is not None and channels % weights.shape[1]:
        raise ValueError(f"{channels} channels cannot be shared by {weights.shape[1]} heads")


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        weights: torch.Tensor | None,
        rotation: torch.Tensor,
        scale: torch.Tensor,
        offsets: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:
        values, rotation, scale = values.contiguous(), rotation.contiguous(), scale.contiguous()
        weights = None if weights is None else weights.contiguous()
        kept = None if weights is None else values  # without weights, whose gradient they are for, they need not stay
        ctx.save_for_backward(kept, weights, rotation, scale, target)
        ctx.dtype = values.dtype
        ctx.constants = _constants(values, weights, rotation)
        atoms, channels = offsets.shape[0] - 1, values.shape[2]
        out = values.new_empty(atoms, rotation.shape[2], channels, dtype=torch.float32)
        grid = (atoms, ctx.constants["lmax"] + 1, -(-channels // ctx.constants["block"]))
        arguments = (values, values if weights is None else weights, rotation, scale, offsets.contiguous(), out)
        launch(_forward_kernel, grid, arguments, num_warps=1, **ctx.constants)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weights, rotation, scale, target = ctx.saved_tensors
        grad = grad.contiguous()
        edges, channels = rotation.shape[0], grad.shape[2]
        grad_values = grad.new_empty(*rotation.shape[:2], channels, dtype=ctx.dtype)
        grid = (edges, -(-channels // ctx.constants["block"]))
        if weights is None:
            arguments = (grad, grad, grad, rotation, scale, target, grad_values, grad)
            launch(_backward_kernel, grid, arguments, num_warps=1, **ctx.constants)
            return grad_values, None, None, None, None, None
        by_channel = grad.new_empty(edges, channels)  # of a weight's gradient
        arguments = (grad, values, weights, rotation, scale, target, grad_values, by_channel)
        launch(_backward_kernel, grid, arguments, num_warps=1, **ctx.constants)
        grad_weights = by_channel.unflatten(1, (weights.shape[1], -1)).sum(dim=-1)
        return grad_values, grad_weights.to(weights.dtype), None, None, None, None


def _constants(values: torch.Tensor, weights: torch.Tensor | None, rotation: torch.Tensor) -> dict[str, Any]:
    heads = 0 if weights is None else weights.shape[1]
    return {**rotation_constants(rotation, values.shape[2]), "heads": heads}


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    values,
    weights,
    rotation,
    scale,
    offsets,
    out,
    coefficients: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    rows: constexpr,
    components: constexpr,
    block: constexpr,
    heads: constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    degree = tl.program_id(1)
    column = tl.program_id(2) * block + tl.arange(0, block)[None, :]
    inside = column < channels
    k = tl.arange(0, components)
    y = tl.zeros((components, block), tl.float32)
    for edge in range(tl.load(offsets + atom), tl.load(offsets + atom + 1)):
        if heads > 0:
            at = edge * heads + column // (channels // heads)
            weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)  # (1, block)
        for position in tl.static_range(2 * mmax + 1):
            m = order_of(position)
            s = coefficient_of(position, degree, lmax)
            at = (edge * coefficients + s) * channels + column
            v = tl.load(values + at, mask=inside & (m <= degree), other=0.0).to(tl.float32)  # (1, block)
            at = (edge * coefficients + s) * ((lmax + 1) * (lmax + 1)) + degree * degree + k
            d = tl.load(rotation + at, mask=(k <= 2 * degree) & (m <= degree), other=0.0).to(tl.float32)
            d *= tl.load(scale + s, mask=m <= degree, other=0.0).to(tl.float32)
            if heads > 0:
                v *= weight
            y += d[:, None] * v
    at = (atom * ((lmax + 1) * (lmax + 1)) + degree * degree + k[:, None]) * channels + column
    tl.store(out + at, y, mask=(k <= 2 * degree)[:, None] & inside)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad,
    values,
    weights,
    rotation,
    scale,
    target,
    grad_values,
    by_channel,
    coefficients: constexpr,
    channels: constexpr,
    lmax: constexpr,
    mmax: constexpr,
    rows: constexpr,
    components: constexpr,
    block: constexpr,
    heads: constexpr,
):
    edge = tl.program_id(0).to(tl.int64)
    atom = tl.load(target + edge)
    column = tl.program_id(1) * block + tl.arange(0, block)[None, :]
    inside = column < channels
    position = tl.arange(0, rows)
    m = order_of(position)
    if heads > 0:
        at = edge * heads + column // (channels // heads)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        dw = tl.zeros((1, block), tl.float32)
    for degree in tl.static_range(lmax + 1):
        s = coefficient_of(position, degree, lmax)
        exists = (m <= degree) & (m <= mmax)
        dv = rotate_degree(
            grad, atom, rotation, edge, s, exists, column, coefficients, channels, lmax, degree, rows, block
        )
        dv *= tl.load(scale + s, mask=exists, other=0.0).to(tl.float32)[:, None]
        at = (edge * coefficients + s[:, None]) * channels + column
        mask = exists[:, None] & inside
        if heads > 0:
            v = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
            dw += tl.sum(tl.where(exists[:, None], v * dv, 0.0), axis=0, keep_dims=True)
            dv *= weight
        tl.store(grad_values + at, dv.to(grad_values.dtype.element_ty), mask=mask)
    if heads > 0:
        tl.store(by_channel + edge * channels + column, dw, mask=inside)
