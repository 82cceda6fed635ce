"""Depthwise tensor products with spherical harmonics, followed by linear maps, without e3nn's generated code.

A path couples channels of one degree with harmonics of another to an output degree. All paths from an input degree are
one batched matrix product, and those to an output degree are mapped together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from dens_plugin.nn.equiformer.coupled_edges import CoupledEdges, path_count
from dens_plugin.nn.features import Features


class DepthwisePaths:
    """The order of a depthwise tensor product's channels: by output degree, input degree, harmonics' degree, channel.

    Args:
        channels: C_l of the input per degree, which are also the degrees of harmonics and outputs.

    Attributes:
        degrees: 0 to L.
        sizes: channels of the product by output and input degree.
        widths: channels of the product by output degree.
        rows: rows of an input degree's coupling that lead to each output degree, by input and output degree.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.degrees = range(len(channels))
        counts = [[path_count(output, inputs, self.degrees[-1]) for inputs in self.degrees] for output in self.degrees]
        self.sizes = [[count * channels[inputs] for inputs, count in enumerate(row)] for row in counts]
        self.widths = [sum(row) for row in self.sizes]
        self.rows = [[(2 * output + 1) * counts[output][inputs] for output in self.degrees] for inputs in self.degrees]


def depthwise_linear(
    features: Sequence[torch.Tensor],
    edges: CoupledEdges,
    *,
    matrices: Sequence[torch.Tensor],
    paths: DepthwisePaths,
    weights: torch.Tensor | None = None,
    first: int = 0,
) -> Features:
    r"""Couple features with the harmonics of their edge, weight the paths, and map the result linearly.

    .. math::

        y^{(l_3)}_w = \sum_{l_1 l_2 u} W_{(l_1 l_2 u) w} \, r_{l_1 l_2 l_3 u} \, (x^{(l_1)}_u \otimes Y^{(l_2)})^{(l_3)}

    Args:
        features: [(E, 2l + 1, C_l)].
        edges: E of them.
        matrices: W per output degree, rows in the order of ``paths``.
        paths: of the channels of ``features``.
        weights: r (E, paths and channels) in the order of ``paths``; one where not given.
        first: degree of the first of ``matrices``.
    """
    wanted = range(first, first + len(matrices))
    products = [
        _products(x, coupling, rows, wanted)
        for x, coupling, rows in zip(features[1:], edges.couplings, paths.rows[1:], strict=True)
    ]  # by input degree from 1, by output degree
    scales = [None] * len(paths.degrees) if weights is None else weights.split(paths.widths, dim=1)
    out = []
    for degree, matrix, *product in zip(wanted, matrices, *products, strict=True):
        sizes = paths.sizes[degree]
        shaped = [x.reshape(-1, 2 * degree + 1, size) for x, size in zip(product, sizes[1:], strict=True)]
        from_scalars, *others = _mapped([features[0], *shaped], matrix, scales[degree], sizes)
        # A scalar's only path to a degree leads to the harmonics themselves: it is mapped before it gets components.
        out.append(sum(others, edges.harmonics[degree].unsqueeze(2) * from_scalars))
    return out


def _products(x: torch.Tensor, coupling: torch.Tensor, rows: Sequence[int], wanted: range) -> list[torch.Tensor]:
    """[(E, (2 output + 1) P, C)] of one input degree, for the wanted output degrees.

    Scalars are a product of their own: they come out the same to the last bit whether vectors are wanted or not.
    """
    starts = [0, *itertools.accumulate(rows)]
    stop = starts[wanted.stop]
    scalars = [torch.bmm(coupling[:, : starts[1]], x)] if wanted.start == 0 else []
    first = max(wanted.start, 1)
    if first == wanted.stop:
        return scalars
    others = torch.bmm(coupling[:, starts[first] : stop], x)
    return [*scalars, *others.split(rows[first : wanted.stop], dim=1)]


def _mapped(
    terms: Sequence[torch.Tensor], matrix: torch.Tensor, scale: torch.Tensor | None, sizes: list[int]
) -> list[torch.Tensor]:
    """What each input degree contributes to one output degree, [(E, components, W)]."""
    if scale is not None:
        terms = [x * part.unsqueeze(1) for x, part in zip(terms, scale.split(sizes, dim=1), strict=True)]
    return [x @ part for x, part in zip(terms, matrix.split(sizes), strict=True)]
