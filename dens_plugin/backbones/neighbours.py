"""The neighbours of a batch as a record that it carries, and fairchem's models reading it.

fairchem finds neighbours at the start of its forward pass (``otf_graph``), for twenty to sixty milliseconds a
structure on a CPU. A batch that has this record is spared that: the model computes distances from the positions and the
edges of the record. They are fairchem's, in the same order; on a GPU its search may round differently and so break ties
otherwise.

The record also holds what a model would have to ask a GPU about its edges, and wait for: how many there are at each
atom, and which of them end at atoms that count.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from fairchem.core.models.base import GraphData, GraphModelMixin

from dens_plugin.backbones.periodic_edges import periodic_edges
from dens_plugin.fields import NEIGHBOURS, holding, padding_of, rows_of
from dens_plugin.nn.escn.first_layer import Degrees
from dens_plugin.nn.pairs import one_of_two, open_pairs

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.fields import Rows

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # edges, their cell offsets, and how many each structure has


class Search(NamedTuple):
    """Which neighbours a backbone looks for.

    Attributes:
        cutoff: Å.
        max_neighbors: of an atom.
        strictly: whether ties at this limit are cut.
        use_pbc: whether to look across the faces of the cell.
        use_pbc_single: whether to do so structure by structure.
        in_pairs: whether it takes one of two edges in opposite directions for both.
    """

    cutoff: float
    max_neighbors: int
    strictly: bool
    use_pbc: bool
    use_pbc_single: bool
    in_pairs: bool = False


class Neighbours(NamedTuple):
    """The edges of a batch at its positions; whoever moves atoms afterwards must take this record away.

    Attributes:
        search: what was looked for; another backbone does not use the record.
        edge_index: (2, E) row 0 the neighbour, row 1 the centre.
        cell_offsets: (E, 3) cells between the two.
        neighbors: (B,) number of edges of each structure.
        checksum: of positions and cells.
        degrees: how many edges atoms have; on the CPU, wherever the batch is.
        incoming: target -> (e,) the edges that end at the atoms of its `Rows`.
        pairs: (H,) which edges are taken for both directions, where the search is for pairs.
    """

    search: Search
    edge_index: torch.Tensor
    cell_offsets: torch.Tensor
    neighbors: torch.Tensor
    checksum: float
    degrees: Degrees
    incoming: dict[str, torch.Tensor]
    pairs: torch.Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, search: Search, found: Found) -> Neighbours:
        """What a search found in a batch whose rows are listed already."""
        edge_index, cell_offsets, _ = found
        of_atoms = {
            name: rows.mask for name, rows in (rows_of(batch) or {}).items() if len(rows.mask) == len(batch.pos)
        }
        incoming = {name: holding(mask[edge_index[1]], None) for name, mask in of_atoms.items()}
        pairs = one_of_two(edge_index, cell_offsets).nonzero().view(-1) if search.in_pairs else None
        return cls(search, *found, _checksum(batch), Degrees.of(edge_index, len(batch.pos)), incoming, pairs)


@dataclass(kw_only=True)
class GraphOfRecord(GraphData):
    """fairchem's graph of a batch, made from its record.

    Attributes:
        record: of all edges.
        is_padded: whether the batch has ghosts.
    """

    record: Neighbours
    is_padded: bool


def with_neighbours(batch: Batch, search: Search) -> Batch:
    """The batch with the record of its neighbours, those of fairchem in the same order."""
    prepared = copy.copy(batch)
    with torch.no_grad():
        found = _periodic(batch, search) or _of_molecules(batch, search) or _by_host(batch, search)
        prepared[NEIGHBOURS] = Neighbours.of(batch, search, found)
    return prepared


def _periodic(batch: Batch, search: Search) -> Found | None:
    """fairchem's edges across the faces of cells, found faster; None where fairchem does something else."""
    if not search.use_pbc or search.use_pbc_single:
        return None
    return periodic_edges(batch, search.cutoff, search.max_neighbors, strictly=search.strictly)


def _of_molecules(batch: Batch, search: Search) -> Found | None:
    """All pairs within the cutoff in both directions; None where their order matters, or not all are wanted."""
    if search.use_pbc or not search.in_pairs or batch.natoms.max() > search.max_neighbors + 1:
        return None
    pairs = open_pairs(batch.pos, batch.batch, batch.natoms, search.cutoff)
    edges = torch.cat([pairs, pairs.flip(0)], dim=1)
    edges = edges[:, (edges[1] * len(batch.pos) + edges[0]).argsort()]
    counts = batch.batch[edges[1]].bincount(minlength=batch.num_graphs)
    return edges, batch.pos.new_zeros(edges.shape[1], 3, dtype=torch.float), counts


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
    """fairchem's search without a network around it."""

    otf_graph = True

    def __init__(self, search: Search) -> None:
        self.cutoff, self.max_neighbors = search.cutoff, search.max_neighbors
        self.enforce_max_neighbors_strictly = search.strictly
        self.use_pbc, self.use_pbc_single = search.use_pbc, search.use_pbc_single


def search_of(backbone: Any) -> Search:
    """What a backbone of fairchem's looks for."""
    strictly = getattr(backbone, "enforce_max_neighbors_strictly", True)  # fairchem's own default
    return Search(
        backbone.cutoff,
        backbone.max_neighbors,
        bool(strictly),
        bool(backbone.use_pbc),
        bool(backbone.use_pbc_single),
        in_pairs=getattr(backbone, "in_pairs", False),
    )


def found_graph(backbone: Any, data: Batch, **options: Any) -> Any:
    """The graph of a batch for a backbone that reads records: on a CPU, in float32, by this package's search.

    Args:
        backbone: of fairchem's, or of this package's.
        data: the batch, with a record or without.
        **options: of ``generate_graph`` that say what the backbone's attributes say.

    Raises:
        ValueError: for a record of another batch.
    """
    is_found_here = data.pos.device.type == "cpu" and data.pos.dtype == torch.float32
    if not (backbone.otf_graph and (NEIGHBOURS in data or is_found_here)):
        return backbone.generate_graph(data, **options)
    if NEIGHBOURS not in data:
        data = with_neighbours(data, search_of(backbone))
    if "generate_graph" in vars(backbone):  # that of a loader's search reads records, another's is to be called
        return backbone.generate_graph(data, **options)
    return read_or_find(backbone, backbone.generate_graph, data, **options)


def read_or_find(backbone: Any, find: Callable[..., Any], data: Batch, **options: Any) -> Any:
    """The graph of a batch: by its record where it is of this backbone's search, else by searching.

    Args:
        backbone: whose ``otf_graph`` is true.
        find: its own ``generate_graph``.
        data: the batch.
        **options: of ``generate_graph`` that say what the backbone's attributes say.

    Raises:
        ValueError: for a record of another batch.
    """
    found: Neighbours | None = data.get(NEIGHBOURS)
    if found is None or found.search != search_of(backbone):
        return find(data, **options)
    _require_fit(found, data)
    if type(backbone).generate_graph is GraphModelMixin.generate_graph:
        return _graph(found, data)
    read = copy.copy(data)
    read.edge_index, read.cell_offsets, read.neighbors = found.edge_index, found.cell_offsets, found.neighbors
    backbone.otf_graph = False  # fairchem has no argument for it: false is overruled by the attribute
    try:
        return find(read, **options)
    finally:
        backbone.otf_graph = True


def recorded_graph(backbone: Any, data: Batch) -> GraphOfRecord | None:
    """The graph of a batch's record; None without one, or for one of another search.

    Raises:
        ValueError: for a record of another batch.
    """
    found: Neighbours | None = data.get(NEIGHBOURS)
    if found is None or found.search != search_of(backbone):
        return None
    _require_fit(found, data)
    return _graph(found, data)


def recorded_pairs(backbone: Any, data: Batch) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Pairs (2, H) of a batch's record, and by how much (H, 3) Å cells move the first of each; None without a record.

    Args:
        backbone: that takes edges in pairs; a record of another search is none.
        data: the batch.

    Raises:
        ValueError: for a record of another batch.
    """
    found: Neighbours | None = data.get(NEIGHBOURS)
    if found is None or found.search != search_of(backbone):
        return None
    _require_fit(found, data)
    pairs = found.edge_index.index_select(1, found.pairs)
    if not found.search.use_pbc:
        return pairs, None
    cells = data.cell.index_select(0, data.batch.index_select(0, pairs[1]))
    return pairs, found.cell_offsets.index_select(0, found.pairs).float()[:, None].bmm(cells.float())[:, 0]


def degrees_of(graph: GraphData) -> Degrees | None:
    """How many edges the atoms of a graph have, if it is by a record."""
    return graph.record.degrees if isinstance(graph, GraphOfRecord) else None


def edges_to(graph: GraphData, target: str, rows: Rows) -> torch.Tensor:
    """(e,) the edges of a graph that end at the atoms that count, in ascending order.

    Args:
        graph: a GPU is asked unless it is by a record.
        target: name of the prediction.
        rows: those of this target in the batch.
    """
    listed = graph.record.incoming.get(target) if isinstance(graph, GraphOfRecord) else None
    return holding(rows.mask[graph.edge_index[1]], listed, is_padded=rows.is_padded)


def _graph(found: Neighbours, data: Batch) -> GraphOfRecord:
    """fairchem's numbers from its arithmetic, without its look for edges of no length, which waits for a GPU.

    Searches across faces find none below 0.01 Å; those of open structures are fairchem's, which keeps them.
    """
    source, target = found.edge_index
    vectors = data.pos[source] - data.pos[target]
    offsets = torch.zeros_like(found.cell_offsets)
    if found.search.use_pbc:
        cells = data.cell.repeat_interleave(found.neighbors, dim=0, output_size=len(source))
        offsets = found.cell_offsets.float()[:, None].bmm(cells.float())[:, 0]
        vectors = vectors + offsets
    return GraphOfRecord(
        edge_index=found.edge_index,
        edge_distance=vectors.norm(dim=-1),
        edge_distance_vec=vectors,
        cell_offsets=found.cell_offsets,
        offset_distances=offsets,
        neighbors=found.neighbors,
        batch_full=data.batch,
        atomic_numbers_full=data.atomic_numbers.long(),
        record=found,
        is_padded=padding_of(data) is not None,
    )


def _require_fit(found: Neighbours, data: Batch) -> None:
    """Raise ValueError for a record of another batch; on a GPU, where looking would wait, its sizes alone tell."""
    num_edges, of_targets = found.edge_index.shape[1], found.degrees.of_targets
    sizes = len(of_targets), sum(of_targets), len(found.cell_offsets), len(found.neighbors)
    fits = sizes == (len(data.pos), num_edges, num_edges, len(data.natoms))
    if not (fits and (data.pos.is_cuda or _has_edges(data, found))):
        raise ValueError(
            f"the neighbours that a batch holds ({num_edges} edges, {len(of_targets)} atoms, {len(found.neighbors)} "
            f"structures) do not belong to its {len(data.pos)} atoms in {len(data.natoms)} structures; find them again "
            "(`with_neighbours`) or remove them (`without_neighbours`)"
        )


def _checksum(data: Batch) -> float:
    """A number that changes with positions and cells; 0 where it cannot be told, as some are not finite."""
    parts = [data[name].detach().double().flatten() for name in ("pos", "cell") if name in data]
    values = torch.cat(parts)
    checksum = float(values @ torch.linspace(1, 2, len(values), dtype=values.dtype))
    return checksum if math.isfinite(checksum) else 0.0


def _has_edges(data: Batch, found: Neighbours) -> bool:
    """Whether the edges of a record are those that it counts, within the structures of a batch, at these positions."""
    is_here = math.isclose(_checksum(data), found.checksum, rel_tol=1e-9, abs_tol=1e-9)
    if not is_here or found.degrees != Degrees.of(found.edge_index, len(data.pos)):
        return False
    source, target = data.batch[found.edge_index]
    return torch.equal(source, target) and torch.equal(found.neighbors, target.bincount(minlength=len(data.natoms)))
