"""SchNet for molecules and crystals, for S2EF, Noisy Nodes and pre-training, whose noise is a gradient.

SchNet: Schütt et al., arXiv:1706.08566, in the form of PyG and fairchem, whose weights load (`schnet.keys`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from fairchem.core.common.registry import registry
from torch import nn

from dens_plugin.backbones.pair_backbone import PairBackbone
from dens_plugin.backbones.schnet.family import FAMILY
from dens_plugin.backbones.sizes import require_sizes
from dens_plugin.nn.schnet.interaction import Gaussians, Interaction

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.nn.pairs import Edges


@registry.register_model("schnet_plugin_backbone")
class SchNet(PairBackbone):
    """SchNet, whose atoms have scalars alone: forces cannot be encoded in them, and DeNS is refused.

    Noise is that of `GradientNoiseHead`.

    Args:
        hidden_channels: C.
        num_filters: F.
        num_interactions: number of layers.
        num_gaussians: K, of a distance.
        cutoff: in Å.
        max_neighbors: the most edges that end at an atom.
        max_num_elements: the largest atomic number plus one.
        use_pbc: whether structures are periodic.
        use_pbc_single: search periodic neighbours one structure at a time, for less memory.
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.

    Raises:
        ValueError: for sizes that are none.
    """

    family = FAMILY

    def __init__(
        self,
        *,
        hidden_channels: int = 128,
        num_filters: int = 128,
        num_interactions: int = 6,
        num_gaussians: int = 50,
        cutoff: float = 10.0,
        max_neighbors: int = 1000,
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
        require_sizes(hidden_channels=hidden_channels, num_filters=num_filters, num_interactions=num_interactions)
        self.hidden_channels = self.scalar_channels = hidden_channels
        self.embedding = nn.Embedding(max_num_elements, hidden_channels)
        self.distance_expansion = Gaussians(num_gaussians, cutoff)
        self.interactions = nn.ModuleList(
            Interaction(hidden_channels, num_filters, num_gaussians) for _ in range(num_interactions)
        )

    def features(self, data: Batch, edges: Edges) -> dict[str, torch.Tensor]:
        """Scalars (N, C)."""
        bases = self.distance_expansion(edges.distances)
        envelope = 0.5 * torch.cos(edges.distances * (math.pi / self.cutoff))[:, None] + 0.5
        scalars = self.embedding(data.atomic_numbers.long())
        for interaction in self.interactions:
            scalars = interaction(scalars, edges, bases, envelope)
        return {"scalars": scalars}
