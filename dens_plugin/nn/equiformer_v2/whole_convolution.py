"""The SO(2) convolution of all edges at once, as a GPU wants it: one product for each order, forward and backward two.

The formulas are those of `convolution`. Of an order m > 0 the three real products are one batched product of

    ( x_m + x_-m,  x_-m,  x_m )   with   ( W,  W + V,  V - W ),

whose factors and results `order_planes` spreads and joins for all orders. In reduced precision, where sums would round
the operands, it is one product of (x_m, x_-m) with the real matrix of the complex one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.backends.triton.order_planes import join, pairs_of, spread
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.tf32 import backward_as_forward


def matrices_of(order: torch.Tensor) -> torch.Tensor:
    """What an order's coefficients are multiplied with, from weights (..., 2 n C', n C) of `convolution.Weights`.

    Returns:
        (..., 3, n C', n C), or (..., 2 n C', 2 n C) in reduced precision.
    """
    real, imaginary = order.chunk(2, dim=-2)
    if is_reduced(order.dtype):
        rows = torch.cat([real, -imaginary], dim=-1), torch.cat([imaginary, real], dim=-1)
        return torch.cat(rows, dim=-2)
    return torch.stack([real, real + imaginary, imaginary - real], dim=-3)


def is_reduced(dtype: torch.dtype) -> bool:
    """Whether sums of two numbers of this type would lose what their product keeps."""
    return dtype in (torch.bfloat16, torch.float16)


def whole_convolution(
    features: torch.Tensor,
    bias: torch.Tensor,
    zero: torch.Tensor,
    matrices: tuple[torch.Tensor, ...],
    layout: Layout,
    num_scalars: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution of all edges.

    Args:
        features: (E, S, C).
        bias: (X + (lmax + 1) C',) of the order 0.
        zero: (X + (lmax + 1) C', (lmax + 1) C) of the order 0.
        matrices: of the orders above (`matrices_of`).
        layout: of the S coefficients.
        num_scalars: how many of the X outputs to return apart.

    Returns:
        (E, num_scalars) and (E, X - num_scalars + S C').
    """
    out: tuple[torch.Tensor, torch.Tensor] = _WholeConvolution.apply(
        features, layout, num_scalars, bias, zero, *matrices
    )
    return out


class _Flat(NamedTuple):
    """Features or outputs of edges side by side, (E, ...), of which the orders m > 0 are the last columns.

    Attributes:
        numbers: (E, ...).
        layout: of the coefficients.
        channels: of a coefficient.
    """

    numbers: torch.Tensor
    layout: Layout
    channels: int

    def orders(self) -> tuple[torch.Tensor, ...]:
        """For every order m > 0 the columns (E, 2 n C) of m and -m."""
        sizes = [2 * size for size in self._sizes]
        return self.numbers[:, self.numbers.shape[1] - sum(sizes) :].split(sizes, dim=1)

    def planes(self) -> list[torch.Tensor]:
        """For every order m > 0 the three planes (3, E, n C) of numbers that `spread` made."""
        parts = self.numbers.split([3 * size for size in self._sizes], dim=1)
        return [part.unflatten(1, (3, size)).transpose(0, 1) for part, size in zip(parts, self._sizes, strict=True)]

    def spread(self, *, is_conjugate: bool) -> _Flat:
        """Factors of the three products."""
        planes = spread(self.numbers, self.layout, self.channels, is_conjugate=is_conjugate)
        return self._replace(numbers=planes)

    def room_for_planes(self) -> _Flat:
        """Memory for the three products."""
        pairs = pairs_of(self.layout, self.channels)
        return self._replace(numbers=self.numbers.new_empty(len(self.numbers), 3 * pairs))

    def write_joined(self, planes: _Flat, *, is_conjugate: bool) -> None:
        """Make the last columns of the three products."""
        join(planes.numbers, self.layout, self.channels, self.numbers, is_conjugate=is_conjugate)

    @property
    def _sizes(self) -> list[int]:
        return [self.layout.degrees_of(m) * self.channels for m in range(1, self.layout.mmax + 1)]


def _multiply(inputs: _Flat, matrices: Sequence[torch.Tensor], out: _Flat) -> None:
    """Write the products of the orders m > 0 into the last columns of ``out``."""
    if matrices[0].dim() == 2:
        for of_input, matrix, of_output in zip(inputs.orders(), matrices, out.orders(), strict=True):
            torch.mm(of_input, matrix.t(), out=of_output)
        return
    factors, products = inputs.spread(is_conjugate=False), out.room_for_planes()
    for of_input, matrix, of_output in zip(factors.planes(), matrices, products.planes(), strict=True):
        torch.bmm(of_input, matrix.transpose(1, 2), out=of_output)
    out.write_joined(products, is_conjugate=False)


def _multiply_backward(grad: _Flat, inputs: _Flat, matrices: Sequence[torch.Tensor], out: _Flat) -> list[torch.Tensor]:
    """Write the gradient of the inputs into ``out``; returns those of the matrices."""
    if matrices[0].dim() == 2:
        for of_output, matrix, of_input in zip(grad.orders(), matrices, out.orders(), strict=True):
            torch.mm(of_output, matrix, out=of_input)
        return [of_output.t() @ of_input for of_output, of_input in zip(grad.orders(), inputs.orders(), strict=True)]
    products, factors = grad.spread(is_conjugate=True), inputs.spread(is_conjugate=False)
    of_factors = out.room_for_planes()
    for of_output, matrix, of_input in zip(products.planes(), matrices, of_factors.planes(), strict=True):
        torch.bmm(of_output, matrix, out=of_input)
    out.write_joined(of_factors, is_conjugate=True)
    return [torch.bmm(a.transpose(1, 2), b) for a, b in zip(products.planes(), factors.planes(), strict=True)]


@backward_as_forward
class _WholeConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        layout: Layout,
        num_scalars: int,
        bias: torch.Tensor,
        zero: torch.Tensor,
        *matrices: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(features, zero, *matrices)
        ctx.layout, ctx.channels = layout, _output_channels(matrices, layout)
        inputs = _Flat(features.flatten(1), layout, features.shape[2])
        width = len(zero) + 2 * pairs_of(layout, ctx.channels)
        out = _Flat(features.new_empty(len(features), width), layout, ctx.channels)
        torch.addmm(bias, inputs.numbers[:, : zero.shape[1]], zero.t(), out=out.numbers[:, : len(zero)])
        if matrices:
            _multiply(inputs, matrices, out)
        return out.numbers[:, :num_scalars], out.numbers[:, num_scalars:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_scalars: torch.Tensor, of_others: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, zero, *matrices = ctx.saved_tensors
        of_features, of_others = torch.empty_like(features), of_others.contiguous()
        inputs, out = (_Flat(part.flatten(1), ctx.layout, part.shape[2]) for part in (features, of_features))
        of_zero = of_others[:, : len(zero) - of_scalars.shape[1]]
        if of_scalars.shape[1] > 0:
            of_zero = torch.cat([of_scalars, of_zero], dim=1)
        torch.mm(of_zero, zero, out=out.numbers[:, : zero.shape[1]])
        of_weights = [of_zero.sum(0), of_zero.t() @ inputs.numbers[:, : zero.shape[1]]]
        if matrices:
            of_weights += _multiply_backward(_Flat(of_others, ctx.layout, ctx.channels), inputs, matrices, out)
        return of_features, None, None, *of_weights


def _output_channels(matrices: Sequence[torch.Tensor], layout: Layout) -> int:
    """C', if there are orders m > 0."""
    if not matrices:
        return 0
    rows = matrices[0].shape[-2] // layout.degrees_of(1)
    return rows if matrices[0].dim() == 3 else rows // 2
