"""Messages along edges: the features of neighbours through weighted kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dens_plugin.nn.features import Features
from dens_plugin.nn.se3_transformer.edges import Edges, widths
from dens_plugin.nn.se3_transformer.radial import RadialFunctions

Turned = dict[tuple[int, int], torch.Tensor]  # input and output degree -> (E, 2l + 1, J inputs)


def through_kernels(features: Sequence[torch.Tensor], edges: Edges, outputs: Sequence[int]) -> Turned:
    """Features of the neighbours, turned by each kernel to an output degree that has channels."""
    turned = {}
    for degree, feature in enumerate(features):
        neighbour = feature.index_select(0, edges.source)  # (E, 2k + 1, inputs)
        for wanted in (output for output, count in enumerate(outputs) if count):
            kernel = edges.kernels[degree][wanted]  # (E, 2l + 1, J, 2k + 1)
            product = kernel.flatten(1, 2) @ neighbour  # (E, (2l + 1) J, inputs)
            turned[degree, wanted] = product.unflatten(1, kernel.shape[1:3]).flatten(2)
    return turned


class Convolution(nn.Module):
    r"""Features of the neighbours, one message an edge (Equation 6).

    .. math:: m^l_{ij} = \sum_k W^{l k}(x_j - x_i) h^k_j, \quad
        W^{l k}(r) = \sum_J \varphi^{l k}_J(|r|) W^{l k}_J(r / |r|)

    Args:
        inputs: channels per degree.
        outputs: channels per degree; 0 for a degree that is not wanted.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.radial = RadialFunctions(widths(inputs, outputs))

    def forward(self, turned: Turned, edges: Edges) -> dict[int, torch.Tensor]:
        """{degree: (E, 2l + 1, outputs)} of the degrees that are wanted, from what `through_kernels` gives."""
        weights = iter(self.radial(edges.distance))
        messages: dict[int, torch.Tensor] = {}
        for degree in range(len(self.inputs)):
            for wanted in (output for output, count in enumerate(self.outputs) if count):
                message = turned[degree, wanted] @ next(weights)
                messages[wanted] = messages[wanted] + message if wanted in messages else message
        return messages


class MeanConvolution(nn.Module):
    """The mean of an atom's messages, and its own features through a linear map.

    Args:
        inputs: channels per degree.
        outputs: channels per degree; 0 for a degree that is not wanted.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.convolution = Convolution(inputs, outputs)
        wanted = [degree for degree, count in enumerate(outputs) if count]
        self.own = nn.ParameterDict(
            {str(degree): linear_weights(inputs[degree], outputs[degree]) for degree in wanted if degree < len(inputs)}
        )

    def forward(self, features: Sequence[torch.Tensor], edges: Edges) -> dict[int, torch.Tensor]:
        """{degree: (N, 2l + 1, outputs)} of the degrees that are wanted; an atom without edges has its own alone."""
        turned = through_kernels(features, edges, self.convolution.outputs)
        messages = self.convolution(turned, edges)
        means = {degree: edges.sum(message) / edges.degree[:, None, None] for degree, message in messages.items()}
        return {
            degree: mean + features[degree] @ self.own[str(degree)] if str(degree) in self.own else mean
            for degree, mean in means.items()
        }


def linear_weights(inputs: int, outputs: int) -> nn.Parameter:
    """(inputs, outputs) of a new linear map."""
    return nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)


def one_hot(indices: torch.Tensor, count: int, dtype: torch.dtype) -> Features:
    """[(N, 1, count)] of indices (N,)."""
    numbers = torch.arange(count, device=indices.device)
    return [(indices[:, None] == numbers).to(dtype).unsqueeze(1)]  # torch's own function asks a CPU for the largest
