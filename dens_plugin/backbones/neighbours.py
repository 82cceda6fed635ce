"""The neighbours of a batch as a record that it carries, and the host's models reading it.

The host finds neighbours at the start of its forward pass (``otf_graph``), for twenty to sixty milliseconds a
structure on a CPU. A batch that has this record is spared that: the model computes distances from the positions and the
edges of the record. They are the host's, in the same order; on a GPU its search may round differently and so break ties
otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from fairchem.core.models.base import GraphModelMixin

from dens_plugin.backbones.periodic_edges import periodic_edges
from dens_plugin.fields import NEIGHBOURS

if TYPE_CHECKING:
    from torch_geometric.data import Batch

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # the last three of Neighbours


class Search(NamedTuple):
    """Which neighbours a backbone looks for.

    Attributes:
        cutoff: Å.
        max_neighbors: of an atom.
        strictly: whether ties at this limit are cut.
        use_pbc: whether to look across the faces of the cell.
        use_pbc_single: whether to do so structure by structure.
    """

    cutoff: float
    max_neighbors: int
    strictly: bool
    use_pbc: bool
    use_pbc_single: bool


class Neighbours(NamedTuple):
    """The edges of a batch at its positions; whoever moves atoms afterwards must take this record away.

    Attributes:
        search: what was looked for; another backbone does not use the record.
        edge_index: (2, E) row 0 the neighbour, row 1 the centre.
        cell_offsets: (E, 3) cells between the two.
        neighbors: (B,) number of edges of each structure.
    """

    search: Search
    edge_index: torch.Tensor
    cell_offsets: torch.Tensor
    neighbors: torch.Tensor


def with_neighbours(batch: Batch, search: Search) -> Batch:
    """The batch with the record of its neighbours, those of the host in the same order."""
    prepared = copy.copy(batch)
    with torch.no_grad():
        prepared[NEIGHBOURS] = Neighbours(search, *(_periodic(batch, search) or _by_host(batch, search)))
    return prepared


def _periodic(batch: Batch, search: Search) -> Found | None:
    """The host's edges across the faces of cells, found faster; None where the host does something else."""
    if not search.use_pbc or search.use_pbc_single:
        return None
    return periodic_edges(batch, search.cutoff, search.max_neighbors, strictly=search.strictly)


def _by_host(batch: Batch, search: Search) -> Found:
    graph = _Host(search).generate_graph(copy.copy(batch))
    return graph.edge_index, graph.cell_offsets, graph.neighbors


def without_neighbours(batch: Batch) -> Batch:
    """The batch without the record, for a model that is to find its neighbours itself."""
    bare = copy.copy(batch)
    if NEIGHBOURS in bare:
        del bare[NEIGHBOURS]
    return bare


class _Host(GraphModelMixin):
    """The host's search without a network around it."""

    otf_graph = True

    def __init__(self, search: Search) -> None:
        self.cutoff, self.max_neighbors = search.cutoff, search.max_neighbors
        self.enforce_max_neighbors_strictly = search.strictly
        self.use_pbc, self.use_pbc_single = search.use_pbc, search.use_pbc_single


def search_of(backbone: Any) -> Search:
    """What a backbone of the host's looks for."""
    strictly = getattr(backbone, "enforce_max_neighbors_strictly", True)  # the host's own default
    return Search(
        backbone.cutoff, backbone.max_neighbors, bool(strictly), bool(backbone.use_pbc), bool(backbone.use_pbc_single)
    )


def read_or_find(backbone: Any, find: Callable[..., Any], data: Batch, **options: Any) -> Any:
    """The graph of a batch: by its record where it is of this backbone's search, else by searching.

    Args:
        backbone: whose ``otf_graph`` is true.
        find: its own ``generate_graph``.
        data: the batch.
        **options: of ``generate_graph`` that say what the backbone's attributes say.
    """
    found: Neighbours | None = data.get(NEIGHBOURS)
    if found is None or found.search != search_of(backbone):
        return find(data, **options)
    read = copy.copy(data)
    read.edge_index, read.cell_offsets, read.neighbors = found.edge_index, found.cell_offsets, found.neighbors
    backbone.otf_graph = False  # the host has no argument for it: false is overruled by the attribute
    try:
        return find(read, **options)
    finally:
        backbone.otf_graph = True
