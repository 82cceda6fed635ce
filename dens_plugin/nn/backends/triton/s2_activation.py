r"""Activation on the sphere, Section 3 of arXiv:2306.12059, without a grid in memory.

.. math:: y_s = \sum_g F_{gs} \, \mathrm{silu}\Big(\sum_t T_{gt} x_t\Big)

for every edge and channel, with the matrices T to and F from the grid. The grid is 11 times as large as the features
(324 points against 29 coefficients), so each program takes some columns (an edge and a channel each), keeps their
coefficients, and walks over blocks of points: two small matrix products and a sum. The backward pass computes the grid
again. With p = T x and the gradient dy of the result,

.. math:: dx_t = \sum_g T_{gt} \, \mathrm{silu}'(p_g) \sum_s F_{gs} \, dy_s .
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl, uses_triton


class _Tile(NamedTuple):
    """How much of the work one program holds: numbers in a (coefficients, columns) tile, grid points at once, warps."""

    numbers: int
    points: int
    warps: int


# Chosen from compiled code (capabilities 7.0, 8.0 and 9.0, Triton 3.0 and 3.6), not from timings: the largest tiles
# that stay in the registers at 29 coefficients; at 49 and more, some bytes spill under 3.0. Exact products run on the
# ordinary cores, where a thread keeps 4 x 4 results; TF32 ones on matrix units, of which Hopper's take 64 rows, here
# points, by 4 warps.
_EXACT = _Tile(numbers=4096, points=32, warps=8)
_TF32 = _Tile(numbers=2048, points=64, warps=4)


def s2_activation(
    features: torch.Tensor,
    gates: torch.Tensor | None,
    to_grid: torch.Tensor,
    from_grid: torch.Tensor,
    *,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """Activate spherical features on a grid; with gates, degree 0 becomes silu(gates) instead (separable activation).

    Args:
        features: (E, S, C) coefficients, S in any order that the two matrices share.
        gates: (E, C) for degree 0, which must be coefficient 0, or None.
        to_grid: (G, S), coefficients to points; it has no gradient.
        from_grid: (G, S), points to coefficients; it has no gradient.
        allow_tf32: multiply float32 in TF32. Half-precision features always are: TF32 holds them exactly.

    Returns:
        (E, S, C) of the features' type, summed in float32.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check(features, gates, to_grid, from_grid)
    if uses_triton(features):
        return s2_activation_triton(features, gates, to_grid, from_grid, allow_tf32=allow_tf32)
    return s2_activation_plain(features, gates, to_grid, from_grid)


def s2_activation_plain(
    features: torch.Tensor, gates: torch.Tensor | None, to_grid: torch.Tensor, from_grid: torch.Tensor
) -> torch.Tensor:
    """`s2_activation` in plain torch, which keeps the grid (E, G, C) for the backward pass."""
    wide = torch.promote_types(features.dtype, torch.float32)
    grid = torch.nn.functional.silu(to_grid.detach().to(wide) @ features.to(wide))  # (E, G, C)
    out = from_grid.detach().to(wide).T @ grid  # (E, S, C)
    if gates is not None:
        out = torch.cat([torch.nn.functional.silu(gates.to(wide))[:, None], out[:, 1:]], dim=1)
    return out.to(features.dtype)


def s2_activation_triton(
    features: torch.Tensor,
    gates: torch.Tensor | None,
    to_grid: torch.Tensor,
    from_grid: torch.Tensor,
    *,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """`s2_activation` by the kernels below, on a CUDA device or in Triton's interpreter."""
    _check(features, gates, to_grid, from_grid)
    exact = features.dtype == torch.float32 and not allow_tf32
    out: torch.Tensor = _S2Activation.apply(features, gates, to_grid, from_grid, "ieee" if exact else "tf32")
    return out


def _check(features: torch.Tensor, gates: torch.Tensor | None, to_grid: torch.Tensor, from_grid: torch.Tensor) -> None:
    edges, coefficients, channels = features.shape
    if to_grid.shape != from_grid.shape or to_grid.shape[1] != coefficients:
        raise ValueError(
            f"matrices to {tuple(to_grid.shape)} and from the grid {tuple(from_grid.shape)} must both have "
            f"{coefficients} columns, as many as the features have coefficients"
        )
    if gates is not None and gates.shape != (edges, channels):
        raise ValueError(f"gates {tuple(gates.shape)} must have shape {(edges, channels)}")


class _S2Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        gates: torch.Tensor | None,
        to_grid: torch.Tensor,
        from_grid: torch.Tensor,
        precision: str,
    ) -> torch.Tensor:
        features, to_grid, from_grid = features.contiguous(), to_grid.contiguous(), from_grid.contiguous()
        gates = None if gates is None else gates.contiguous()
        ctx.save_for_backward(features, gates, to_grid, from_grid)
        ctx.precision = precision
        out = torch.empty_like(features)
        arguments = (features, features if gates is None else gates, to_grid, from_grid, out)
        _launch(_forward_kernel, features, to_grid, arguments, has_gates=gates is not None, precision=precision)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, gates, to_grid, from_grid = ctx.saved_tensors
        grad_features = torch.empty_like(features)
        grad_gates = None if gates is None else torch.empty_like(gates)
        inputs = (features, features if gates is None else gates, to_grid, from_grid)
        outputs = (grad.contiguous(), grad_features, grad_features if gates is None else grad_gates)
        constants = {"has_gates": gates is not None, "precision": ctx.precision}
        _launch(_backward_kernel, features, to_grid, (*inputs, *outputs), **constants)
        return grad_features, grad_gates, None, None, None


def _launch(
    kernel: Any, features: torch.Tensor, to_grid: torch.Tensor, arguments: tuple[Any, ...], **constants: Any
) -> None:
    edges, coefficients, channels = features.shape
    tile = _EXACT if constants["precision"] == "ieee" else _TF32
    rows = max(16, 1 << (coefficients - 1).bit_length())  # a matrix product needs at least 16
    block = max(16, min(128, tile.numbers // rows))
    total = edges * channels
    launch(
        kernel,
        (-(-total // block),),
        (*arguments, total),
        coefficients=coefficients,
        channels=channels,
        points=to_grid.shape[0],
        rows=rows,
        block=block,
        # twice as many would exceed the shared memory of cards with 99 KiB a block
        point_block=tile.points if rows <= 64 else tile.points // 2,
        num_warps=tile.warps,
        num_stages=2 if rows <= 32 else 1,  # more blocks of the matrices on their way exceed an A100's shared memory
        **constants,
    )


@jit
def _columns(total, coefficients: constexpr, channels: constexpr, rows: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """The first column of this program, and where its columns' coefficients lie: offset of the first edge, offsets from
    there (rows, block), and which of them exist. Columns are numbered edge by edge, so C need not be a power of two.
    """
    first = tl.program_id(0).to(tl.int64) * block
    edge = first // channels
    column = (first - edge * channels).to(tl.int32) + tl.arange(0, block)
    s = tl.arange(0, rows)
    start = (column // channels) * (coefficients * channels) + column % channels
    offsets = s[:, None] * channels + start[None, :]
    exists = (s[:, None] < coefficients) & (first + tl.arange(0, block) < total)[None, :]
    return first, edge * (coefficients * channels), offsets, exists


@jit
def _matrix_block(matrix, first, coefficients: constexpr, points: constexpr, rows: constexpr, point_block: constexpr):  # type: ignore[no-untyped-def]
    """Rows first ... first + point_block - 1 of a (G, S) matrix, zero where there are none: (point_block, rows)."""
    g = first + tl.arange(0, point_block)
    s = tl.arange(0, rows)
    exists = (g[:, None] < points) & (s[None, :] < coefficients)
    return tl.load(matrix + g[:, None] * coefficients + s[None, :], mask=exists, other=0.0).to(tl.float32)


@jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + tl.exp(-x))


@jit
def _silu_slope(x):  # type: ignore[no-untyped-def]
    sigmoid = _sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    features,
    gates,
    to_grid,
    from_grid,
    out,
    total,  # columns: E * C
    coefficients: constexpr,
    channels: constexpr,
    points: constexpr,
    rows: constexpr,
    block: constexpr,
    point_block: constexpr,
    has_gates: constexpr,
    precision: constexpr,
):
    first, base, offsets, exists = _columns(total, coefficients, channels, rows, block)
    x = tl.load(features + base + offsets, mask=exists, other=0.0).to(tl.float32)  # (S, columns)
    y = tl.zeros((rows, block), tl.float32)
    for g in range(0, points, point_block):
        t = _matrix_block(to_grid, g, coefficients, points, rows, point_block)
        p = tl.dot(t, x, input_precision=precision)  # p = T x, (points, columns)
        f = _matrix_block(from_grid, g, coefficients, points, rows, point_block)
        y += tl.dot(tl.trans(f), p * _sigmoid(p), input_precision=precision)  # y += F^T silu(p)
    if has_gates:
        column = first + tl.arange(0, block)
        gate = tl.load(gates + column, mask=column < total, other=0.0).to(tl.float32)
        y = tl.where(tl.arange(0, rows)[:, None] == 0, (gate * _sigmoid(gate))[None, :], y)
    tl.store(out + base + offsets, y.to(out.dtype.element_ty), mask=exists)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    features,
    gates,
    to_grid,
    from_grid,
    grad,
    grad_features,
    grad_gates,
    total,
    coefficients: constexpr,
    channels: constexpr,
    points: constexpr,
    rows: constexpr,
    block: constexpr,
    point_block: constexpr,
    has_gates: constexpr,
    precision: constexpr,
):
    first, base, offsets, exists = _columns(total, coefficients, channels, rows, block)
    x = tl.load(features + base + offsets, mask=exists, other=0.0).to(tl.float32)
    if has_gates:  # coefficient 0 of the result is silu(gates): its gradient is theirs
        column = first + tl.arange(0, block)
        inside = column < total
        gate = tl.load(gates + column, mask=inside, other=0.0).to(tl.float32)
        start = (column // channels) * (coefficients * channels) + column % channels
        dy_gate = tl.load(grad + start, mask=inside, other=0.0).to(tl.float32)
        dgate = dy_gate * _silu_slope(gate)
        tl.store(grad_gates + column, dgate.to(grad_gates.dtype.element_ty), mask=inside)
        others = exists & (tl.arange(0, rows)[:, None] > 0)
        dy = tl.load(grad + base + offsets, mask=others, other=0.0).to(tl.float32)
    else:
        dy = tl.load(grad + base + offsets, mask=exists, other=0.0).to(tl.float32)
    dx = tl.zeros((rows, block), tl.float32)
    for g in range(0, points, point_block):
        t = _matrix_block(to_grid, g, coefficients, points, rows, point_block)
        f = _matrix_block(from_grid, g, coefficients, points, rows, point_block)
        p = tl.dot(t, x, input_precision=precision)  # p = T x
        dp = tl.dot(f, dy, input_precision=precision) * _silu_slope(p)  # dp = (F dy) silu'(p)
        dx += tl.dot(tl.trans(t), dp, input_precision=precision)  # dx += T^T dp
    tl.store(grad_features + base + offsets, dx.to(grad_features.dtype.element_ty), mask=exists)
