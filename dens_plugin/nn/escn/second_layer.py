"""The second layer of eSCN's convolution (arXiv:2302.03655), for both ends of an edge in one product for each order.

    y_e = sum over both ends:  V (f_e * h_e)        (E, S, C)

h are the values of the first layer (`first_layer`), f factors that depend on distance and elements. The
products of both, 4,608 numbers an edge at the published size, are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.so2.layout import Layout


class Factors(NamedTuple):
    """silu of a linear layer, P parts for each of two ends.

    Attributes:
        inputs: (E, K).
        weight: (2 P H, K).
        bias: (2 P H,).
    """

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def before(self, edges: slice) -> torch.Tensor:
        """(e, 2 P H) of some edges, before the activation."""
        return torch.addmm(self.bias, self.inputs[edges], self.weight.t())


class SecondLayer(NamedTuple):
    """What the layer of all edges is made of.

    Attributes:
        hidden: for the sources and then for the targets, for every part (E, signs, H).
        factors: of the values of ``hidden``, in this order.
        weights: for every order (n C, 2 H) if m is 0, else (n C, 4 H): both parts of the sources, both of the targets.
        layout: of the S coefficients.
    """

    hidden: Sequence[torch.Tensor]
    factors: Factors
    weights: Sequence[torch.Tensor]
    layout: Layout

    @classmethod
    def parse(cls, tensors: Sequence[torch.Tensor], layout: Layout) -> SecondLayer:
        """From its `tensors`."""
        end = 3 + layout.mmax + 1
        return cls(tensors[end:], Factors(*tensors[:3]), tensors[3:end], layout)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """One by one, as autograd wants them."""
        return *self.factors, *self.weights, *self.hidden

    @property
    def num_edges(self) -> int:
        """E."""
        return len(self.factors.inputs)

    @property
    def channels(self) -> int:
        """C."""
        return len(self.weights[0]) // self.layout.degrees_of(0)

    def to(self, dtype: torch.dtype) -> SecondLayer:
        """In another precision."""
        return self.parse([tensor.to(dtype) for tensor in self.tensors], self.layout)

    def all(self) -> torch.Tensor:
        """(E, S, C) of all edges at once, with its gradients."""
        out: torch.Tensor = _All.apply(self.layout, *self.tensors)
        return out

    def write(self, edges: slice, out: torch.Tensor) -> None:
        """Write the values of some edges into ``out`` (e, S, C); autograd does not see it."""
        flat, channels = out.flatten(1), out.shape[2]
        for start, scaled, weight in self.scaled(self.values(self.factors.before(edges)), edges):
            for sign in range(scaled.shape[1]):
                first = start * channels + sign * len(weight)
                torch.mm(scaled[:, sign], weight.t(), out=flat[:, first : first + len(weight)])

    def values(self, before: torch.Tensor) -> torch.Tensor:
        """(e, 2 P, H) factors from what they are before their activation."""
        return functional.silu(before).unflatten(1, (len(self.hidden), -1))

    def parts(self) -> list[list[int]]:
        """For every order the numbers of its parts among ``hidden``: those of the sources, then of the targets."""
        count = len(self.hidden) // 2
        of_ends = [[0], *([2 * m - 1, 2 * m] for m in range(1, self.layout.mmax + 1))]
        return [[end * count + part for end in (0, 1) for part in parts] for parts in of_ends]

    def scaled(self, values: torch.Tensor, edges: slice) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """For every order: where its coefficients begin, its inputs (e, signs, 2 H or 4 H), and its weight."""
        width = values.shape[2]
        for m, parts in enumerate(self.parts()):
            out = values.new_empty(len(values), min(m, 1) + 1, len(parts) * width)
            for slot, part in enumerate(parts):
                columns = slice(slot * width, (slot + 1) * width)
                torch.mul(self.hidden[part][edges], values[:, part, None], out=out[:, :, columns])
            yield self.layout.start_of(m), out, self.weights[m]


class Gradient:
    """The gradients of a layer, those of what all edges share summed over the pieces.

    Args:
        layer: whose.
    """

    def __init__(self, layer: SecondLayer) -> None:
        self._layer = layer
        self._factors = Factors(*(torch.zeros_like(part) for part in layer.factors))
        self._weights = [torch.zeros_like(weight) for weight in layer.weights]
        self._hidden = [torch.empty_like(part) for part in layer.hidden]

    def add(self, grad: torch.Tensor, edges: slice) -> None:
        """Take the gradient (e, S, C) of some edges."""
        layer = self._layer
        before = layer.factors.before(edges)
        values = layer.values(before)
        of_values = torch.empty_like(values)
        for m, (start, scaled, weight) in enumerate(layer.scaled(values, edges)):
            coefficients = scaled.shape[1] * layer.layout.degrees_of(m)
            rows = grad[:, start : start + coefficients].reshape(-1, len(weight))
            self._weights[m].addmm_(rows.t(), scaled.flatten(0, 1))
            of_scaled = torch.mm(rows, weight).view_as(scaled)
            self._add_scaled(of_scaled, values, of_values, layer.parts()[m], edges)
        of_before = torch.ops.aten.silu_backward(of_values.view_as(before), before)
        torch.mm(of_before, layer.factors.weight, out=self._factors.inputs[edges])
        self._factors.weight.addmm_(of_before.t(), layer.factors.inputs[edges])
        self._factors.bias.add_(of_before.sum(0))

    def of_tensors(self) -> tuple[torch.Tensor, ...]:
        """Of the layer's `tensors`."""
        return *self._factors, *self._weights, *self._hidden

    def _add_scaled(
        self, grad: torch.Tensor, values: torch.Tensor, of_values: torch.Tensor, parts: list[int], edges: slice
    ) -> None:
        """Write the gradients of both factors of the inputs of an order."""
        width = values.shape[2]
        for slot, part in enumerate(parts):
            of_part = grad[:, :, slot * width : (slot + 1) * width]
            torch.sum(of_part * self._layer.hidden[part][edges], 1, out=of_values[:, part])
            torch.mul(of_part, values[:, part, None], out=self._hidden[part][edges])


class _All(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, *tensors: torch.Tensor) -> torch.Tensor:
        layer = SecondLayer.parse(tensors, layout)
        out = tensors[0].new_empty(layer.num_edges, len(layout), layer.channels)
        layer.write(slice(None), out)
        ctx.save_for_backward(*tensors)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = Gradient(SecondLayer.parse(ctx.saved_tensors, ctx.layout))
        gradient.add(grad, slice(None))
        return None, *gradient.of_tensors()
