"""EGNN as a backbone, and EGNN that encodes forces. The network is in `dens_plugin.nn.egnn`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from torch import nn

from dens_plugin.backbones.egnn.family import FAMILY
from dens_plugin.backbones.forward_pass import require_known_elements
from dens_plugin.backbones.neighbours import found_graph
from dens_plugin.backbones.pair_backbone import NeighbourBackbone
from dens_plugin.backbones.sizes import require_sizes
from dens_plugin.fields import corruption_of
from dens_plugin.nn.egnn.edges import Edges
from dens_plugin.nn.egnn.force_terms import EncodedForces, ForceTerms
from dens_plugin.nn.egnn.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_geometric.data import Batch


@registry.register_model("egnn_plugin_backbone")
class EGNN(NeighbourBackbone):
    """EGNN with the hyper-parameters of denoise pre-training (arXiv:2303.02216).

    Its messages do not fade towards the cutoff: an energy jumps a little where an atom enters or leaves, as in the
    authors' network.

    Args:
        channels: of scalars and messages.
        num_layers: number of layers.
        attention: whether messages are weighed.
        normalize: whether coordinates move by unit vectors; else by vectors in Å.
        constant_length: take the lengths of those vectors for constants in gradients, as the authors' code does, which
            makes forces as gradients inexact.
        cutoff: in Å.
        max_neighbors: the most edges that end at an atom.
        max_num_elements: the largest atomic number plus one.
        use_pbc: whether structures are periodic.
        use_pbc_single: search periodic neighbours one structure at a time, for less memory.
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.

    Raises:
        ValueError: for options that do not exist.
    """

    family = FAMILY

    def __init__(
        self,
        *,
        channels: int = 256,
        num_layers: int = 5,
        attention: bool = True,
        normalize: bool = True,
        constant_length: bool = False,
        cutoff: float = 5.0,
        max_neighbors: int = 33,
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
        require_sizes(channels=channels, num_layers=num_layers, max_neighbors=max_neighbors)
        self.channels = self.scalar_channels = channels
        self.moves = {"normalize": normalize, "constant_length": constant_length}
        self.embedding = nn.Embedding(max_num_elements, channels)
        # Where the last layer moves atoms matters to heads alone, which have those weights.
        self.layers = nn.ModuleList(
            Layer(channels, attention=attention, moves=index < num_layers - 1, **self.moves)
            for index in range(num_layers)
        )

    def forward(self, data: Batch) -> dict[str, Any]:
        """What heads read; with an autograd graph under ``torch.no_grad()`` too where one takes a gradient and ends it.

        Returns:
            ``scalars`` (N, C); ``state``, what the last layer leaves; the ``edges``; the ``positions`` (N, 3) to
            differentiate by; and ``unread``, the weights that heads without scalars do not depend on.
        """
        require_known_elements(data, self.max_num_elements)
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.is_differentiated):
            positions = data.pos.detach().requires_grad_(self.is_differentiated)  # not the caller's tensor
            edges = self._edges(data, positions)
            scalars, displacement = self.embedding(data.atomic_numbers.long()), torch.zeros_like(positions)
            for layer, forces in zip(self.layers, self._encoded(data), strict=True):
                state = layer(scalars, displacement, edges, forces)
                scalars, displacement = state.scalars, state.displacement
            unread = self.layers[-1].of_scalars()
            return {"scalars": scalars, "state": state, "edges": edges, "positions": positions, "unread": unread}

    def _encoded(self, data: Batch) -> Sequence[EncodedForces | None]:
        """The forces that each layer sees."""
        return [None] * len(self.layers)

    def _edges(self, data: Batch, positions: torch.Tensor) -> Edges:
        with torch.no_grad():  # which atoms are neighbours is not differentiated
            graph = found_graph(self, data)
        source, target = graph.edge_index
        vectors = positions[target] - positions[source] - graph.offset_distances.to(positions.dtype)
        return Edges.of(source, target, vectors, len(positions))


@registry.register_model("egnn_dens_plugin_backbone")
class EGNNDeNS(EGNN):
    """EGNN that encodes the forces of a batch's corruption record, see `ForceTerms`.

    A batch without a record, as at inference, goes through `EGNN` alone. Encoded forces are constants: no gradient with
    respect to positions passes through them.

    Args:
        **kwargs: as of `EGNN`.
    """

    encodes_forces = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.force_terms = nn.ModuleList(
            ForceTerms(self.channels, moves=layer.moves is not None) for layer in self.layers
        )

    def _encoded(self, data: Batch) -> Sequence[EncodedForces | None]:
        corruption = corruption_of(data)
        if corruption is None:
            return super()._encoded(data)
        forces = corruption.forces.to(data.pos.dtype)
        return [EncodedForces(terms, forces) for terms in self.force_terms]
