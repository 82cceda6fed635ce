"""The SO(2) convolution: a matrix for m = 0, a complex one for every m > 0 (eSCN, arXiv:2302.03655).

    y_0 = W_0 x_0 + b        y_m + i y_-m = (W_m + i V_m) (x_m + i x_-m)

x_m are the n = lmax + 1 - m coefficients of order m with all their channels, (E, n C). A complex product takes three
real ones, not four, of which the first serves both parts and the others are added to it:

    y_m = W (x_m + x_-m) - (W + V) x_-m        y_-m = W (x_m + x_-m) + (V - W) x_m

In reduced precision the sums would round the operands, so that there the four are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from dens_plugin.nn.equiformer_v2.whole_convolution import is_reduced, matrices_of, whole_convolution
from dens_plugin.nn.so2.layout import Layout


class _Complex:
    def __init__(self, real: torch.Tensor, imaginary: torch.Tensor, total: torch.Tensor | None = None) -> None:
        self.real, self.imaginary = real, imaginary
        self._total = total

    @cached_property
    def total(self) -> torch.Tensor:
        """The sum of both parts."""
        return self.real + self.imaginary if self._total is None else self._total

    @cached_property
    def difference(self) -> torch.Tensor:
        """The imaginary part without the real one."""
        return self.imaginary - self.real


@dataclass(frozen=True)
class Weights:
    """Weights of a convolution from C to C' channels.

    Attributes:
        bias: (X + (lmax + 1) C',) of the order 0, of which X outputs come before the features.
        orders: (X + (lmax + 1) C', (lmax + 1) C) of the order 0, then for every m > 0, which has n degrees,
            (2 n C', n C): W_m above V_m.
        matrices: of the orders m > 0 for a `whole_convolution`, if they were made before.
    """

    bias: torch.Tensor
    orders: Sequence[torch.Tensor]
    matrices: tuple[torch.Tensor, ...] | None = None

    @property
    def width(self) -> int:
        """Number of outputs: X + S C'."""
        return sum(weight.shape[0] for weight in self.orders)

    @cached_property
    def factors(self) -> tuple[_Complex, ...]:
        """(n C, n C') of every order m > 0, to multiply with from the right; their sums are made once."""
        return tuple(_Complex(*order.t().chunk(2, dim=1)) for order in self.orders[1:])

    def whole(self, features: torch.Tensor, layout: Layout, num_scalars: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The convolution of all edges at once, as `whole_convolution`."""
        matrices = tuple(map(matrices_of, self.orders[1:])) if self.matrices is None else self.matrices
        return whole_convolution(features, self.bias, self.orders[0], matrices, layout, num_scalars)

    def to(self, dtype: torch.dtype) -> Weights:
        """In another precision."""
        if self.bias.dtype == dtype:
            return self
        return Weights(self.bias.to(dtype), tuple(weight.to(dtype) for weight in self.orders))


class _Columns(NamedTuple):
    """Which columns of the flat features (E, S C) and of the outputs (E, X + S C') are those of an order."""

    inputs: slice
    outputs: slice


def write_product(of_orders: Iterable[torch.Tensor], weights: Weights, layout: Layout, out: torch.Tensor) -> None:
    """Write the convolution of some features into ``out`` (e, X + S C'); autograd does not see it.

    Args:
        of_orders: for every m from 0 on the coefficients of m and -m, (e, n, C) or (e, 2 n, C); or (e, 3 n, C) with the
            sums of both behind them.
        weights: of the convolution.
        layout: of the coefficients.
        out: to write to.
    """
    start = 0
    for m, features in enumerate(of_orders):
        flat, stop = features.flatten(1), start + len(weights.orders[m])
        if m == 0:
            torch.addmm(weights.bias, flat, weights.orders[0].t(), out=out[:, start:stop])
        else:
            parts = flat.split(weights.orders[m].shape[1], dim=1)
            _multiply(_Complex(*parts), weights.factors[m - 1], out=_halves(out[:, start:stop]))
            del parts
        start = stop
        del features, flat  # before the next order's are made


class Gradient:
    """The gradients of a convolution, those of the weights summed over the pieces.

    Args:
        weights: of the convolution.
        layout: of the S coefficients.
    """

    def __init__(self, weights: Weights, layout: Layout) -> None:
        self._weights, self._layout = weights, layout
        parts = [weight.chunk(2) for weight in weights.orders[1:]]
        self._conjugates = [_Complex(real, -imaginary) for real, imaginary in parts]
        self._of_bias, self._of_zero = torch.zeros_like(weights.bias), _Sum(weights.orders[0])
        self._of_others = [_ComplexSum(real) for real, _ in parts]

    def write(
        self, grad: torch.Tensor, features: torch.Tensor, out: torch.Tensor, scalars: torch.Tensor | None = None
    ) -> None:
        """Write the gradient of the features of a piece, whose share of the weights' is added to the sums.

        Args:
            grad: (e, X + S C') of the output.
            features: (e, S, C) the input.
            out: (e, S, C), which may be ``features``: memory that a processor has just read.
            scalars: the first columns of the output's gradient, if ``grad`` lacks them.
        """
        flat, of_flat = features.flatten(1), out.flatten(1)
        zero, *others = _columns(self._weights, self._layout, features.shape[2])
        left_out = 0 if scalars is None else scalars.shape[1]
        of_zero = grad[:, : zero.outputs.stop - left_out]
        of_zero = of_zero if scalars is None else torch.cat([scalars, of_zero], dim=1)
        self._of_zero.add(of_zero.t(), flat[:, zero.inputs])
        self._of_bias.add_(of_zero.sum(0))
        torch.mm(of_zero, self._weights.orders[0], out=of_flat[:, zero.inputs])
        for (inputs, outputs), conjugate, total in zip(others, self._conjugates, self._of_others, strict=True):
            of_output = _halves(grad[:, outputs.start - left_out : outputs.stop - left_out])
            total.add(of_output, _halves(flat[:, inputs]))
            _multiply(of_output, conjugate, out=_halves(of_flat[:, inputs]))

    def of_weights(self) -> tuple[torch.Tensor, ...]:
        """Of the bias, and of every order."""
        return self._of_bias, self._of_zero.result(), *(total.result() for total in self._of_others)


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
    if is_reduced(x.real.dtype):
        torch.sub(x.real @ weight.real, x.imaginary @ weight.imaginary, out=out.real)
        torch.mm(x.real, weight.imaginary, out=out.imaginary).addmm_(x.imaginary, weight.real)
        return
    torch.mm(x.total, weight.real, out=out.real)
    out.imaginary.copy_(out.real)
    out.real.addmm_(x.imaginary, weight.total, alpha=-1)
    out.imaginary.addmm_(x.real, weight.difference)


class _Sum:
    """Sum of matrix products, of which the first overwrites what is in memory, so that nothing need be set to zero."""

    def __init__(self, like: torch.Tensor) -> None:
        self._total, self._is_empty = torch.empty_like(like), True

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self._total.addmm_(left, right, beta=0 if self._is_empty else 1)
        self._is_empty = False

    def result(self) -> torch.Tensor:
        return self._total.zero_() if self._is_empty else self._total


class _ComplexSum:
    """Sum of grad^T @ conj(x) in complex numbers, its three or four real products summed apart."""

    def __init__(self, real: torch.Tensor) -> None:
        self._is_reduced = is_reduced(real.dtype)
        self._products = [_Sum(real) for _ in range(4 if self._is_reduced else 3)]

    def add(self, grad: _Complex, x: _Complex) -> None:
        real, imaginary, *others = self._products
        real.add(grad.real.t(), x.real)
        imaginary.add(grad.imaginary.t(), x.imaginary)
        if self._is_reduced:
            others[0].add(grad.imaginary.t(), x.real)
            others[1].add(grad.real.t(), x.imaginary)
            return
        others[0].add(grad.total.t(), x.real - x.imaginary)

    def result(self) -> torch.Tensor:
        """The real part above the imaginary one."""
        p, q, *others = (product.result() for product in self._products)
        out = p.new_empty(2 * len(p), p.shape[1])
        torch.add(p, q, out=out[: len(p)])
        torch.sub(others[0], others[1] if self._is_reduced else p.sub_(q), out=out[len(p) :])
        return out
