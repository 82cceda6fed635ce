"""Messages, updates and gated outputs of PaiNN (arXiv:2102.03150), as in its paper or as the Open Catalyst Project's.

The latter has a layer norm before messages, SiLU over 0.6, and factors that keep the size of features.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from dens_plugin.nn.pair_messages import sum_messages
from dens_plugin.nn.pairs import Edges

Form = Literal["paper", "open_catalyst"]

_TINY = 1e-8  # under roots, whose slope at 0 is infinite


class ScaledSiLU(nn.Module):
    """SiLU over 0.6, which keeps the variance of what is normally distributed."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Of any shape."""
        return nn.functional.silu(values) * (1 / 0.6)


class Message(nn.Module):
    r"""What atoms hear of their neighbours.

    .. math:: \Delta x_i = \sum_j \phi^1_j W^1_{ij}, \qquad
       \Delta v_i = \sum_j v_j \phi^2_j W^2_{ij} + \hat{r}_{ij} \phi^3_j W^3_{ij}

    Args:
        channels: C.
        num_bases: K, of a distance.
        form: of the network.
    """

    def __init__(self, channels: int, num_bases: int, form: Form) -> None:
        super().__init__()
        self.form = form
        self.x_proj = perceptron(channels, channels, 3 * channels, form)
        self.rbf_proj = linear(num_bases, 3 * channels, form)
        if form == "open_catalyst":
            self.x_layernorm = nn.LayerNorm(channels)
            shrink = torch.tensor([1.0, 1 / math.sqrt(3 * channels), 1 / math.sqrt(channels)])
            self.register_buffer("_shrink", shrink.repeat_interleave(channels), persistent=False)

    def forward(
        self, scalars: torch.Tensor, vectors: torch.Tensor | None, edges: Edges, bases: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New scalars (N, C) and vectors (N, 3, C).

        Args:
            scalars: (N, C).
            vectors: (N, 3, C); None for zeros.
            edges: of the batch.
            bases: (H, K + 1), of which the last is the bias's.
        """
        filters = bases @ torch.cat([self.rbf_proj.weight, self.rbf_proj.bias[:, None]], dim=1).T  # (H, 3 C)
        is_paper = self.form == "paper"
        factors = self.x_proj(scalars) if is_paper else self.x_proj(self.x_layernorm(scalars)) * self._shrink
        of_scalars, of_vectors = sum_messages(factors, vectors, filters, edges)
        scalars = scalars + of_scalars
        return scalars if is_paper else scalars * math.sqrt(
            0.5
        ), of_vectors if vectors is None else vectors + of_vectors


class Update(nn.Module):
    r"""What an atom's scalars and vectors tell each other.

    .. math:: \Delta x = a^1 + a^2 \langle U v, V v \rangle, \qquad \Delta v = a^3 U v

    with a of scalars and the sizes of V v.

    Args:
        channels: C.
        form: of the network.
    """

    def __init__(self, channels: int, form: Form) -> None:
        super().__init__()
        self.form = form
        self.vec_proj = linear(channels, 2 * channels, form, bias=False)
        self.xvec_proj = perceptron(2 * channels, channels, 3 * channels, form)
        if form == "open_catalyst":
            self.register_buffer("scale", torch.ones(()))

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New scalars (N, C) and vectors (N, 3, C)."""
        channels = scalars.shape[1]
        first, second = self.vec_proj(vectors).split(channels, dim=-1)
        product = (first * second).sum(dim=1)
        size = (second.square().sum(dim=1) + _TINY).sqrt()
        own, of_product, of_vectors = self.xvec_proj(torch.cat([scalars, size], dim=1)).split(channels, dim=1)
        vectors = torch.addcmul(vectors, of_vectors[:, None], first)
        if self.form == "paper":
            return torch.addcmul(scalars + own, of_product, product), vectors
        change = torch.addcmul(own, of_product, product, value=1 / math.sqrt(channels))
        return (scalars + change * math.sqrt(0.5)) * self.scale, vectors


class VectorOutput(nn.Module):
    """One vector per atom, by two gated blocks.

    Args:
        channels: C.
        form: of the network.
    """

    def __init__(self, channels: int, form: Form) -> None:
        super().__init__()
        half = channels // 2
        self.output_network = nn.ModuleList([GatedBlock(channels, half, form), GatedBlock(half, 1, form)])

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """(N, 3) of scalars (N, C) and vectors (N, 3, C)."""
        for block in self.output_network:
            scalars, vectors = block(scalars, vectors)
        return vectors.squeeze(-1)


class GatedBlock(nn.Module):
    """A perceptron of scalars and the sizes of vectors, which also gates the vectors.

    Args:
        channels: C.
        outputs: C', channels of the result.
        form: of the network.
    """

    def __init__(self, channels: int, outputs: int, form: Form) -> None:
        super().__init__()
        self.outputs = outputs
        self.vec1_proj = linear(channels, channels, form, bias=False)
        self.vec2_proj = linear(channels, outputs, form, bias=False)
        self.update_net = perceptron(2 * channels, channels, 2 * outputs, form)
        self.act = activation(form)

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C') and (N, 3, C') of (N, C) and (N, 3, C)."""
        sizes = _sizes(self.vec1_proj(vectors))
        scalars, gates = self.update_net(torch.cat([scalars, sizes], dim=1)).split(self.outputs, dim=1)
        return self.act(scalars), gates[:, None] * self.vec2_proj(vectors)


def _sizes(vectors: torch.Tensor) -> torch.Tensor:
    """Norms (N, C) of vectors (N, 3, C), with slope 0 at 0, in a tenth of the time of `torch.norm`."""
    squares = vectors.square().sum(dim=1)
    is_zero = squares == 0
    return squares.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def perceptron(inputs: int, hidden: int, outputs: int, form: Form) -> nn.Sequential:
    """Two linear layers around an activation."""
    return nn.Sequential(linear(inputs, hidden, form), activation(form), linear(hidden, outputs, form))


def activation(form: Form) -> nn.Module:
    """Between linear layers."""
    return nn.SiLU() if form == "paper" else ScaledSiLU()


def linear(inputs: int, outputs: int, form: Form, *, bias: bool = True) -> nn.Linear:
    """A linear layer with torch's first weights, or with larger ones (Xavier's) and no bias at first.

    Features grow with a power of the encoded forces in every layer: what keeps their size otherwise starts too large.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    if form == "open_catalyst":
        nn.init.xavier_uniform_(layer.weight)
        if bias:
            nn.init.zeros_(layer.bias)
    return layer
