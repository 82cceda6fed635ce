"""The SO(2) convolution: a matrix for m = 0, a complex one for every m > 0 (eSCN, arXiv:2302.03655).

    y_0 = W_0 x_0 + b        y_m + i y_-m = (W_m + i V_m) (x_m + i x_-m)

x_m are the n = lmax + 1 - m coefficients of order m with all their channels, (E, n C). A complex product takes three
real ones, not four: with  p = W x_m,  q = V x_-m,  s = (W + V)(x_m + x_-m)  it is  p - q + i (s - p - q).  In reduced
precision the sums would round the operands, so that there the four are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from dens_plugin.nn.so2.layout import Layout


class Weights(NamedTuple):
    """Weights of a convolution from C to C' channels.

    Attributes:
        bias: (X + (lmax + 1) C',) of the order 0, of which X outputs come before the features.
        orders: (X + (lmax + 1) C', (lmax + 1) C) of the order 0, then for every m > 0, which has n degrees,
            (2 n C', n C): W_m above V_m.
    """

    bias: torch.Tensor
    orders: Sequence[torch.Tensor]

    @property
    def width(self) -> int:
        """Number of outputs: X + S C'."""
        return sum(weight.shape[0] for weight in self.orders)

    def to(self, dtype: torch.dtype) -> Weights:
        """In another precision."""
        return Weights(self.bias.to(dtype), tuple(weight.to(dtype) for weight in self.orders))

    def zeros(self) -> Weights:
        """For the sums of gradients."""
        return Weights(torch.zeros_like(self.bias), tuple(torch.zeros_like(weight) for weight in self.orders))


class _Complex(NamedTuple):
    real: torch.Tensor
    imaginary: torch.Tensor


class _Columns(NamedTuple):
    """Which columns of the flat features (E, S C) and of the outputs (E, X + S C') are those of an order."""

    inputs: slice
    outputs: slice


def convolution(features: torch.Tensor, weights: Weights, layout: Layout) -> torch.Tensor:
    """The convolution of all edges at once, with its gradients.

    Args:
        features: (E, S, C).
        weights: of the convolution.
        layout: of the S coefficients.

    Returns:
        (E, X + S C').
    """
    out: torch.Tensor = _Convolution.apply(features, layout, weights.bias, *weights.orders)
    return out


def convolve(features: torch.Tensor, weights: Weights, layout: Layout, out: torch.Tensor) -> None:
    """Write the convolution of ``features`` into ``out``; autograd does not see it.

    Args:
        features: (E, S, C).
        weights: of the convolution.
        layout: of the S coefficients.
        out: (E, X + S C').
    """
    flat = features.flatten(1)
    zero, *others = _columns(weights, layout, features.shape[2])
    torch.addmm(weights.bias, flat[:, zero.inputs], weights.orders[0].t(), out=out[:, zero.outputs])
    for (inputs, outputs), weight in zip(others, weights.orders[1:], strict=True):
        _multiply(_halves(flat[:, inputs]), _halves(weight.t()), out=_halves(out[:, outputs]))


def convolve_backward(
    grad: torch.Tensor, features: torch.Tensor, weights: Weights, layout: Layout, sums: Weights
) -> torch.Tensor:
    """Gradient of the features; those of the weights are added to ``sums``.

    Args:
        grad: (E, X + S C') of the output.
        features: (E, S, C) the input.
        weights: of the convolution.
        layout: of the S coefficients.
        sums: as ``weights``.

    Returns:
        (E, S, C).
    """
    flat = features.flatten(1)
    out = torch.empty_like(flat)
    zero, *others = _columns(weights, layout, features.shape[2])
    torch.mm(grad[:, zero.outputs], weights.orders[0], out=out[:, zero.inputs])
    sums.orders[0].addmm_(grad[:, zero.outputs].t(), flat[:, zero.inputs])
    sums.bias.add_(grad[:, zero.outputs].sum(0))
    for (inputs, outputs), weight, total in zip(others, weights.orders[1:], sums.orders[1:], strict=True):
        of_output, (real, imaginary) = _halves(grad[:, outputs]), weight.chunk(2)
        _multiply(of_output, _Complex(real, -imaginary), out=_halves(out[:, inputs]))
        _add_outer(of_output, _halves(flat[:, inputs]), _Complex(*total.chunk(2)))
    return out.view_as(features)


def _columns(weights: Weights, layout: Layout, channels: int) -> Iterator[_Columns]:
    """For every m from 0 on."""
    end = 0
    for m, weight in enumerate(weights.orders):
        signs = 1 if m == 0 else 2
        first, count = layout.start_of(m) * channels, signs * layout.degrees_of(m) * channels
        start, end = end, end + len(weight)
        yield _Columns(slice(first, first + count), slice(start, end))


def _halves(both: torch.Tensor) -> _Complex:
    """Columns of +m, then as many of -m."""
    return _Complex(*both.chunk(2, dim=1))


def _multiply(x: _Complex, weight: _Complex, *, out: _Complex) -> None:
    """``out`` = x @ weight in complex numbers."""
    p = torch.mm(x.real, weight.real)
    q = torch.mm(x.imaginary, weight.imaginary)
    torch.sub(p, q, out=out.real)
    if _is_reduced(x.real.dtype):
        torch.mm(x.real, weight.imaginary, out=out.imaginary).addmm_(x.imaginary, weight.real)
        return
    torch.mm(x.real + x.imaginary, weight.real + weight.imaginary, out=out.imaginary)
    out.imaginary.sub_(p.add_(q))


def _add_outer(grad: _Complex, x: _Complex, total: _Complex) -> None:
    """``total`` += grad^T @ conj(x) in complex numbers."""
    p = torch.mm(grad.real.t(), x.real)
    q = torch.mm(grad.imaginary.t(), x.imaginary)
    total.real.add_(p).add_(q)
    if _is_reduced(x.real.dtype):
        total.imaginary.addmm_(grad.imaginary.t(), x.real).addmm_(grad.real.t(), x.imaginary, alpha=-1)
        return
    total.imaginary.addmm_((grad.real + grad.imaginary).t(), x.real - x.imaginary).sub_(p).add_(q)


def _is_reduced(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, layout: Layout, bias: torch.Tensor, *orders: torch.Tensor
    ) -> torch.Tensor:
        weights = Weights(bias, orders)
        out = features.new_empty(len(features), weights.width)
        convolve(features, weights, layout, out)
        ctx.save_for_backward(features, bias, *orders)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, bias, *orders = ctx.saved_tensors
        weights = Weights(bias, orders)
        sums = weights.zeros()
        grad_features = convolve_backward(grad, features, weights, ctx.layout, sums)
        return grad_features, None, sums.bias, *sums.orders
