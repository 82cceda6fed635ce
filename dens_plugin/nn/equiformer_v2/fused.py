"""The two halves of a graph attention by the kernels of `dens_plugin.nn.backends.triton`, for devices that run them.

The same formulas as `message` and `attention`, over all edges at once: what these keep in a processor's cache the
kernels keep in registers. Between them stand the matrix products of the convolutions.
"""

from __future__ import annotations

import torch

from dens_plugin.nn.backends.triton.aggregate import aggregate
from dens_plugin.nn.backends.triton.rotate_to_edges import rotate_to_edges
from dens_plugin.nn.equiformer_v2.convolution import Weights
from dens_plugin.nn.equiformer_v2.linear import Linear
from dens_plugin.nn.equiformer_v2.radial import Radial
from dens_plugin.nn.so2.rotated_edges import RotatedEdges


def fused_messages(
    nodes: torch.Tensor, radial: Radial | None, weights: Weights, edges: RotatedEdges, num_scalars: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `message.messages`, in the precision of ``nodes``."""
    factors = None
    if radial is not None:
        factors = Linear(radial.weight, radial.bias)(radial.hidden).unflatten(1, (-1, 2 * nodes.shape[2]))
    features = rotate_to_edges(nodes, edges.in_both_orders, edges.rotation, factors)
    return weights.whole(features, edges.layout, num_scalars)


def fused_weighted_sum(
    activated: torch.Tensor, attention: torch.Tensor, weights: Weights, edges: RotatedEdges
) -> torch.Tensor:
    """As `attention.weighted_sum`, of activated features (E, S, C)."""
    _, values = weights.whole(activated, edges.layout)
    values = values.unflatten(1, (len(edges.layout), -1))
    return aggregate(values, attention, edges.rotation, edges.scale, edges.offsets, edges.row)
