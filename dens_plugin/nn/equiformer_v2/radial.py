"""Factors of a message that depend on its edge's length and elements: the last layer of a radial function.

y_lmc = r_lc x_lmc     or, with a factor for every |m|,     y_lmc = r_l|m|c x_lmc
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.orders import orders


class Radial(NamedTuple):
    """The last layer of a radial function: factors for every channel and degree, or every channel, degree and |m|.

    Attributes:
        hidden: (E, K) its input.
        weight: (R C, K), with R = lmax + 1 or the number of pairs (degree, |m|), those of m = 0 first.
        bias: (R C,).
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def to(self, dtype: torch.dtype) -> Radial:
        """In another precision."""
        return Radial(*(part.to(dtype) for part in self))

    def zeros(self) -> Radial:
        """For the sums of gradients."""
        return Radial(*(torch.zeros_like(part) for part in self))

    def factors(self, edges: slice, channels: int) -> torch.Tensor:
        """(e, R, C) of some edges."""
        return torch.addmm(self.bias, self.hidden[edges], self.weight.t()).unflatten(1, (-1, channels))

    def add_gradients(self, grad_factors: torch.Tensor, edges: slice, sums: Radial) -> None:
        """Add to ``sums`` what the gradient (e, R, C) of the factors of some edges says."""
        flat = grad_factors.flatten(1)
        torch.mm(flat, self.weight, out=sums.hidden[edges])
        sums.weight.addmm_(flat.t(), self.hidden[edges])
        sums.bias.add_(flat.sum(0))


def multiply(parts: Sequence[torch.Tensor], factors: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(e, S, P C) features times the factors (e, R, P C) of their degree and order.

    Args:
        parts: (e, S, C) each, the features side by side.
        factors: of all of them.
        layout: of the S coefficients.
    """
    out = parts[0].new_empty(*parts[0].shape[:2], factors.shape[2])
    for order in orders(layout, factors.shape[1]):
        for part, channels in _side_by_side(parts):
            of_part = factors[:, None, order.rows, channels]
            torch.mul(order.of(part), of_part, out=order.of(out)[..., channels])
    return out


def multiply_backward(
    grad: torch.Tensor, parts: Sequence[torch.Tensor], factors: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """Gradient (e, R, P C) of the factors; ``grad`` (e, S, P C) becomes that of the features, in place."""
    out = torch.empty_like(factors)
    for order in orders(layout, factors.shape[1]):
        of_order = order.of(grad)
        for part, channels in _side_by_side(parts):
            of_factors = out[:, order.rows, channels]
            signs = zip(of_order[..., channels].unbind(1), order.of(part).unbind(1), strict=True)
            if order.is_first:
                torch.mul(*next(signs), out=of_factors)
            for of_sign, features in signs:
                of_factors.addcmul_(of_sign, features)
        of_order *= factors[:, None, order.rows]
    return out


def _side_by_side(parts: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, slice]]:
    """Parts (e, S, C) and their channels among all."""
    end = 0
    for part in parts:
        start, end = end, end + part.shape[2]
        yield part, slice(start, end)
