"""What light backbones share: neighbours or pairs of atoms, positions to differentiate by, and a description."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from fairchem.core.models.base import BackboneInterface, GraphModelMixin
from torch import nn

from dens_plugin.backbones.description import Description, by_attributes
from dens_plugin.backbones.neighbours import found_graph, recorded_pairs, search_of
from dens_plugin.nn.pairs import Edges, one_of_two, open_pairs

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.backbones.family import Family


class NeighbourBackbone(nn.Module, BackboneInterface, GraphModelMixin):
    """A network on atoms and their neighbours.

    Args:
        cutoff: in Å.
        max_neighbors: the most edges that end at an atom.
        use_pbc: whether structures are periodic.
        use_pbc_single: search periodic neighbours one structure at a time, for less memory.
        max_num_elements: the largest atomic number plus one.
        otf_graph: only True: the neighbours of moved atoms are not those stored with a structure.

    Raises:
        ValueError: for ``otf_graph: false``.
    """

    family: ClassVar[Family]
    encodes_forces: ClassVar[bool] = False
    is_differentiated = False
    """Whether a head takes gradients with respect to positions; such a head says so."""

    def __init__(
        self,
        *,
        cutoff: float,
        max_neighbors: int,
        use_pbc: bool,
        use_pbc_single: bool,
        max_num_elements: int,
        otf_graph: bool,
    ) -> None:
        super().__init__()
        if not otf_graph:
            raise ValueError(
                f"{self.family.title} finds neighbours itself, as those of corrupted structures are stored nowhere; "
                "leave `otf_graph` out of the backbone or set it to true"
            )
        self.otf_graph, self.enforce_max_neighbors_strictly = True, True
        self.cutoff, self.max_neighbors = cutoff, max_neighbors
        self.use_pbc, self.use_pbc_single = use_pbc, use_pbc_single
        self.max_num_elements = max_num_elements

    def describe(self) -> Description:
        """What others must know of it."""
        return Description(
            self.family,
            cutoff=self.cutoff,
            periodic=self.use_pbc,
            elements=self.max_num_elements,
            search=search_of(self),
            encodes_forces=self.encodes_forces,
            differentiates=self.is_differentiated,
        )


class PairBackbone(NeighbourBackbone):
    """A network on pairs of atoms. Forces that it encodes are constants: no gradient by positions passes through."""

    in_pairs = True
    """For searches: one of two edges in opposite directions stands for both."""

    def forward(self, data: Batch) -> dict[str, torch.Tensor]:
        """``scalars`` (N, C), what else `features` gives, and the ``positions`` (N, 3) to differentiate by.

        An autograd graph is built under ``torch.no_grad()`` too if a head takes gradients; that head ends it.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.is_differentiated):
            positions = data.pos.detach().requires_grad_(self.is_differentiated)  # not the caller's tensor
            return {**self.features(data, self._edges(data, positions)), "positions": positions}

    def features(self, data: Batch, edges: Edges) -> dict[str, torch.Tensor]:
        """``scalars`` (N, C) of atoms, and ``vectors`` (N, 3, C) if there are any."""
        raise NotImplementedError

    def describe(self) -> Description:
        """What others must know of it."""
        own_search = "" if self.use_pbc else "it pairs the atoms of molecules faster itself"
        return by_attributes(
            self,
            family=self.family,
            encodes_forces=self.encodes_forces,
            own_search=own_search,
            reads_records=True,
        )

    def _edges(self, data: Batch, positions: torch.Tensor) -> Edges:
        with torch.no_grad():  # which atoms are neighbours is not differentiated
            recorded = recorded_pairs(self, data)
            if recorded is not None:
                pairs, offsets = recorded
            elif not self.use_pbc and data.natoms.max() <= self.max_neighbors + 1:
                pairs, offsets = open_pairs(data.pos, data.batch, data.natoms, self.cutoff), None
            else:
                graph = found_graph(self, data)
                kept = one_of_two(graph.edge_index, graph.cell_offsets)
                pairs, offsets = graph.edge_index[:, kept], graph.offset_distances[kept]
        first, second = pairs
        vectors = positions.index_select(0, first) - positions.index_select(0, second)
        vectors = vectors if offsets is None else vectors + offsets.to(vectors.dtype)
        return Edges.of(pairs, vectors, data.batch, data.num_graphs)
