"""SE(3)-Transformer as a backbone, and one that encodes forces. The network is in `dens_plugin.nn.se3_transformer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from torch import nn

from dens_plugin.backbones.forward_pass import require_known_elements
from dens_plugin.backbones.neighbours import found_graph
from dens_plugin.backbones.pair_backbone import NeighbourBackbone
from dens_plugin.backbones.se3_transformer.family import FAMILY
from dens_plugin.backbones.sizes import require_sizes
from dens_plugin.fields import corruption_of
from dens_plugin.nn.equiformer.embedding import DegreeForceEncoding
from dens_plugin.nn.features import Features, total
from dens_plugin.nn.se3_transformer.attention import Layer
from dens_plugin.nn.se3_transformer.convolution import MeanConvolution, one_hot
from dens_plugin.nn.se3_transformer.edges import EdgeGeometry, Edges

if TYPE_CHECKING:
    from torch_geometric.data import Batch


@registry.register_model("se3_transformer_plugin_backbone")
class SE3Transformer(NeighbourBackbone):
    """SE(3)-Transformer with the hyper-parameters of denoise pre-training (arXiv:2303.02216).

    Its messages do not fade towards the cutoff: an energy jumps a little where an atom enters or leaves, as in the
    authors' network.

    Args:
        channels: of a layer's features, the same for each degree.
        num_layers: number of layers.
        num_degrees: degrees of features, from 0.
        num_heads: number of attention heads.
        value_divisor: by how many times values of attention have fewer channels.
        cutoff: in Å.
        max_neighbors: the most edges that end at an atom.
        max_num_elements: the largest atomic number plus one.
        use_pbc: whether structures are periodic.
        use_pbc_single: search periodic neighbours one structure at a time, for less memory.
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.

    Raises:
        ValueError: for options that do not exist, or channels that do not divide.
    """

    family = FAMILY

    def __init__(
        self,
        *,
        channels: int = 8,
        num_layers: int = 3,
        num_degrees: int = 4,
        num_heads: int = 2,
        value_divisor: int = 4,
        cutoff: float = 5.0,
        max_neighbors: int = 32,
        max_num_elements: int = 100,
        use_pbc: bool = False,
        use_pbc_single: bool = False,
        otf_graph: bool = True,
    ) -> None:
        super().__init__(
            cutoff=cutoff,
            max_neighbors=max_neighbors,
            use_pbc=use_pbc,
            use_pbc_single=use_pbc_single,
            max_num_elements=max_num_elements,
            otf_graph=otf_graph,
        )
        require_sizes(channels=channels, num_layers=num_layers, num_heads=num_heads, max_neighbors=max_neighbors)
        if channels % value_divisor:
            raise ValueError(f"value_divisor must divide the {channels} channels, got {value_divisor}")
        if num_degrees < 2:
            raise ValueError(f"num_degrees must be 2 or more, as vectors are of degree 1, got {num_degrees}")
        self.channels, self.scalar_channels = [channels] * num_degrees, channels * num_degrees
        self.geometry = EdgeGeometry(num_degrees - 1)
        inputs = [[max_num_elements], *[self.channels] * (num_layers - 1)]
        values = [channels // value_divisor] * num_degrees
        self.layers = nn.ModuleList(Layer(each, self.channels, values, num_heads) for each in inputs)
        self.last = MeanConvolution(self.channels, [self.scalar_channels])

    def forward(self, data: Batch) -> dict[str, Any]:
        """What heads read; with an autograd graph under ``torch.no_grad()`` too where one takes a gradient and ends it.

        Returns:
            ``features`` [(N, 2l + 1, C)] of the last layer, ``scalars`` (N, S) made of them, the ``edges``, the
            ``positions`` (N, 3) to differentiate by, and ``unread``, the weights that heads without scalars do not
            depend on.
        """
        require_known_elements(data, self.max_num_elements)
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.is_differentiated):
            positions = data.pos.detach().requires_grad_(self.is_differentiated)  # not the caller's tensor
            edges = self._edges(data, positions)
            first, *others = self.layers
            features = first(one_hot(data.atomic_numbers.long(), self.max_num_elements, positions.dtype), edges)
            features = self._encoded(data, features)
            for layer in others:
                features = layer(features, edges)
            scalars = self.last(features, edges)[0].squeeze(1)
            return {
                "features": features,
                "scalars": scalars,
                "edges": edges,
                "positions": positions,
                "unread": list(self.last.parameters()),
            }

    def _encoded(self, data: Batch, features: Features) -> Features:
        """The first layer's features, and what is known of forces."""
        return features

    def _edges(self, data: Batch, positions: torch.Tensor) -> Edges:
        with torch.no_grad():  # which atoms are neighbours is not differentiated
            graph = found_graph(self, data)
        source, target = graph.edge_index
        vectors = positions[source] - positions[target] + graph.offset_distances.to(positions.dtype)
        return self.geometry(source, target, vectors, len(positions))


@registry.register_model("se3_transformer_dens_plugin_backbone")
class SE3TransformerDeNS(SE3Transformer):
    """SE(3)-Transformer that encodes the forces of a batch's corruption record (Equation 5 of arXiv:2403.09549).

    The network's input has elements alone; forces are added to what the first layer leaves, the first features of all
    degrees. A batch without a record, as at inference, goes through `SE3Transformer` alone. Encoded forces are
    constants: no gradient with respect to positions passes through them.

    Args:
        **kwargs: as of `SE3Transformer`.
    """

    encodes_forces = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.force_embedding = DegreeForceEncoding(self.channels)

    def _encoded(self, data: Batch, features: Features) -> Features:
        corruption = corruption_of(data)
        if corruption is None:
            return features
        return total(features, self.force_embedding(corruption.forces.to(data.pos.dtype)))
