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

from dens_plugin.nn.backends.triton.availability import constexpr, jit, launch, tl


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
    convolved: torch.Tensor,
    to_grid: torch.Tensor,
    from_grid: torch.Tensor,
    *,
    has_gates: bool,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """Activate spherical features on a grid; with gates, degree 0 becomes silu(gates) instead (separable activation).

    Args:
        convolved: (E, C + S C) gates and coefficients, S in any order that the two matrices share, coefficient 0 being
            degree 0; or (E, S C) without gates. Its rows may be parts of longer ones.
        to_grid: (G, S), coefficients to points; it has no gradient.
        from_grid: (G, S), points to coefficients; it has no gradient.
        has_gates: whether there are gates.
        allow_tf32: multiply float32 in TF32. Half-precision features always are: TF32 holds them exactly.

    Returns:
        (E, S, C) of the features' type, summed in float32.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    if to_grid.shape != from_grid.shape or convolved.shape[1] % (to_grid.shape[1] + has_gates):
        raise ValueError(
            f"matrices to {tuple(to_grid.shape)} and from the grid {tuple(from_grid.shape)} must have the same shape, "
            f"and its columns must share {convolved.shape[1]} numbers of an edge"
        )
    exact = convolved.dtype == torch.float32 and not allow_tf32
    out: torch.Tensor = _S2Activation.apply(convolved, to_grid, from_grid, has_gates, "ieee" if exact else "tf32")
    return out


class _S2Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        convolved: torch.Tensor,
        to_grid: torch.Tensor,
        from_grid: torch.Tensor,
        has_gates: bool,
        precision: str,
    ) -> torch.Tensor:
        convolved = convolved if convolved.stride(1) == 1 else convolved.contiguous()
        to_grid, from_grid = to_grid.contiguous(), from_grid.contiguous()
        ctx.save_for_backward(convolved, to_grid, from_grid)
        ctx.constants = {"has_gates": has_gates, "precision": precision}
        coefficients = to_grid.shape[1]
        out = convolved.new_empty(len(convolved), coefficients, convolved.shape[1] // (coefficients + has_gates))
        _launch(_forward_kernel, convolved, (to_grid, from_grid), (out,), **ctx.constants)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        convolved, *matrices = ctx.saved_tensors
        out = convolved.new_empty(convolved.shape)
        _launch(_backward_kernel, convolved, tuple(matrices), (grad.contiguous(), out), **ctx.constants)
        return out, None, None, None, None


def _launch(
    kernel: Any,
    convolved: torch.Tensor,
    matrices: tuple[torch.Tensor, ...],
    others: tuple[torch.Tensor, ...],
    **constants: Any,
) -> None:
    points, coefficients = matrices[0].shape
    channels = convolved.shape[1] // (coefficients + constants["has_gates"])
    tile = _EXACT if constants["precision"] == "ieee" else _TF32
    rows = max(16, 1 << (coefficients - 1).bit_length())  # a matrix product needs at least 16
    block = max(16, min(128, tile.numbers // rows))
    total = len(convolved) * channels
    launch(
        kernel,
        (-(-total // block),),
        (convolved, *matrices, *others, total, convolved.stride(0)),
        coefficients=coefficients,
        channels=channels,
        points=points,
        rows=rows,
        block=block,
        # twice as many would exceed the shared memory of cards with 99 KiB a block
        point_block=tile.points if rows <= 64 else tile.points // 2,
        num_warps=tile.warps,
        num_stages=2 if rows <= 32 else 1,  # more blocks of the matrices on their way exceed an A100's shared memory
        **constants,
    )


@jit
def _columns(total, stride, coefficients: constexpr, channels: constexpr, rows: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Of this program's columns, in rows of so many numbers: the place of the first edge's row, of the others from
    there (block,), of their coefficients (rows, block), and which exist. Columns are numbered edge by edge, so C need
    not be a power of two.
    """
    first = tl.program_id(0).to(tl.int64) * block
    edge = first // channels
    column = (first - edge * channels).to(tl.int32) + tl.arange(0, block)
    s = tl.arange(0, rows)
    start = (column // channels) * stride + column % channels
    exists = (s[:, None] < coefficients) & (first + tl.arange(0, block) < total)[None, :]
    return edge * stride, start, s[:, None] * channels + start[None, :], exists


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
    convolved,
    to_grid,
    from_grid,
    out,
    total,  # columns: E * C
    stride,  # from an edge to the next
    coefficients: constexpr,
    channels: constexpr,
    points: constexpr,
    rows: constexpr,
    block: constexpr,
    point_block: constexpr,
    has_gates: constexpr,
    precision: constexpr,
):
    base, start, offsets, exists = _columns(total, stride, coefficients, channels, rows, block)
    features = convolved + base
    if has_gates:
        inside = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block) < total
        gate = tl.load(features + start, mask=inside, other=0.0).to(tl.float32)
        features += channels
    x = tl.load(features + offsets, mask=exists, other=0.0).to(tl.float32)  # (S, columns)
    y = tl.zeros((rows, block), tl.float32)
    for g in range(0, points, point_block):
        t = _matrix_block(to_grid, g, coefficients, points, rows, point_block)
        p = tl.dot(t, x, input_precision=precision)  # p = T x, (points, columns)
        f = _matrix_block(from_grid, g, coefficients, points, rows, point_block)
        y += tl.dot(tl.trans(f), p * _sigmoid(p), input_precision=precision)  # y += F^T silu(p)
    if has_gates:
        y = tl.where(tl.arange(0, rows)[:, None] == 0, (gate * _sigmoid(gate))[None, :], y)
    base, start, offsets, exists = _columns(total, coefficients * channels, coefficients, channels, rows, block)
    tl.store(out + base + offsets, y.to(out.dtype.element_ty), mask=exists)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    convolved,
    to_grid,
    from_grid,
    grad,
    out,
    total,
    stride,
    coefficients: constexpr,
    channels: constexpr,
    points: constexpr,
    rows: constexpr,
    block: constexpr,
    point_block: constexpr,
    has_gates: constexpr,
    precision: constexpr,
):
    base, start, offsets, exists = _columns(total, coefficients * channels, coefficients, channels, rows, block)
    others = exists
    if has_gates:  # coefficient 0 of the result is silu(gates): its gradient is theirs
        inside = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block) < total
        dy_gate = tl.load(grad + base + start, mask=inside, other=0.0).to(tl.float32)
        others = exists & (tl.arange(0, rows)[:, None] > 0)
    dy = tl.load(grad + base + offsets, mask=others, other=0.0).to(tl.float32)
    base, start, offsets, exists = _columns(total, stride, coefficients, channels, rows, block)
    features = convolved + base
    if has_gates:
        gate = tl.load(features + start, mask=inside, other=0.0).to(tl.float32)
        features += channels
    x = tl.load(features + offsets, mask=exists, other=0.0).to(tl.float32)
    dx = tl.zeros((rows, block), tl.float32)
    for g in range(0, points, point_block):
        t = _matrix_block(to_grid, g, coefficients, points, rows, point_block)
        f = _matrix_block(from_grid, g, coefficients, points, rows, point_block)
        p = tl.dot(t, x, input_precision=precision)  # p = T x
        dp = tl.dot(f, dy, input_precision=precision) * _silu_slope(p)  # dp = (F dy) silu'(p)
        dx += tl.dot(tl.trans(t), dp, input_precision=precision)  # dx += T^T dp
    numbers: constexpr = (coefficients + 1) * channels if has_gates else coefficients * channels
    base, start, offsets, exists = _columns(total, numbers, coefficients, channels, rows, block)
    of_features = out + base
    if has_gates:
        tl.store(of_features + start, (dy_gate * _silu_slope(gate)).to(out.dtype.element_ty), mask=inside)
        of_features += channels
    tl.store(of_features + offsets, dx.to(out.dtype.element_ty), mask=exists)
