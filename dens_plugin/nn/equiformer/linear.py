"""Linear maps between channels of equal degree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dens_plugin.nn.features import Features

Draw = Callable[[torch.Tensor, int], object]  # fills a weight of so many inputs in place


def normal(weight: torch.Tensor, fan_in: int) -> None:
    """The published models' initialisation, of variance 1 / fan_in."""
    nn.init.normal_(weight, std=1 / math.sqrt(max(fan_in, 1)))


def uniform(weight: torch.Tensor, fan_in: int) -> None:
    """Between -1 and 1 over the root of the fan-in, as in Section D.2 of the paper for networks without norms."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    nn.init.uniform_(weight, -bound, bound)


class Linear(nn.Module):
    r"""Mixes the channels of each degree; scalars may have a bias.

    .. math:: y^{(l)}_w = \sum_u W^{(l)}_{uw} x^{(l)}_u + \delta_{l0} b_w

    The weights of all degrees are one vector, in the order of e3nn's tensor product with a scalar.

    Args:
        inputs: channels of the input per degree.
        outputs: channels of the output per degree; 0 where a degree is not wanted.
        bias: whether scalars have one.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        self.shapes = list(zip(inputs, outputs, strict=False))
        self._sizes = [rows * columns for rows, columns in self.shapes]
        self.weight = nn.Parameter(torch.empty(sum(self._sizes)))
        self.bias = nn.Parameter(torch.zeros(outputs[0])) if bias and outputs[0] > 0 else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, draw: Draw = normal) -> None:
        """Draw the weights anew; the bias is zero."""
        self._draw_matrices(draw)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _draw_matrices(self, draw: Draw) -> None:
        for weight in self.matrices():
            draw(weight, weight.shape[0])

    def matrices(self) -> list[torch.Tensor]:
        """The weight of each degree, (inputs, outputs)."""
        parts = self.weight.split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def forward(self, features: Sequence[torch.Tensor], first: int = 0) -> Features:
        """Map [(N, 2l + 1, inputs)] to [(N, 2l + 1, outputs)], for as many degrees from ``first`` as are given."""
        out = [x @ weight for x, weight in zip(features, self.matrices()[first:], strict=False)]
        if self.bias is not None and first == 0:
            out[0] = out[0] + self.bias
        return out


class FeatureLinear(Linear):
    """A linear map whose degrees above 0 only the noise head reads.

    They are drawn apart, so that all else starts as in a model without them.
    """

    def _draw_matrices(self, draw: Draw) -> None:
        scalars, *others = self.matrices()
        draw(scalars, scalars.shape[0])
        with torch.random.fork_rng(devices=[]):
            for weight in others:
                draw(weight, weight.shape[0])
