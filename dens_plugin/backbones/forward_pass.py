"""What the modules of a model on the fast path share during a forward pass and its backward pass: the batch's edges."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from fairchem.core.common import gp_utils
from torch import nn

from dens_plugin.fields import structure_names
from dens_plugin.nn.edge_frames import SHORTEST, has_direction
from dens_plugin.nn.so2.layout import Layout
from dens_plugin.nn.so2.rotated_edges import RotatedEdges
from dens_plugin.nn.so2.tf32 import tf32_products

if TYPE_CHECKING:
    from torch_geometric.data import Batch


class Now(NamedTuple):
    """What depends on the batch.

    Attributes:
        edges: with their rotations, once these are known.
        num_graphs: B.
        weights: of modules, in the form in which this device multiplies with them, where they were made before.
    """

    edges: RotatedEdges | None = None
    num_graphs: int = 0
    weights: Mapping[nn.Module, Any] = {}


class Pass:
    """The current batch's graph, and its edges as soon as their rotations are known.

    Args:
        layout: of an edge's features.
        dtype: precision of an edge's features, None for that of the nodes.
        tf32: whether their products are in TF32, on CUDA.
    """

    def __init__(self, layout: Layout, dtype: torch.dtype | None = None, *, tf32: bool = False) -> None:
        self.layout = layout
        self._dtype = dtype
        self._tf32 = tf32
        self._has_told = False
        self._edge_index: torch.Tensor | None = None
        self._num_atoms = 0
        self.now = Now()

    @classmethod
    def unless_graph_parallel(
        cls, layout: Layout, dtype: torch.dtype | None = None, *, tf32: bool = False
    ) -> Pass | None:
        """A pass, or None, and a line in the log, where ranks share a graph: they exchange features within a block."""
        if not gp_utils.initialized():
            return cls(layout, dtype, tf32=tf32)
        logging.info(
            "Under graph parallelism fairchem's own code computes all that needs edges, without the fast path "
            "(`model.backbone.fast`) and in the precision of the nodes."
        )
        return None

    def begin(self, edge_index: torch.Tensor, *, num_atoms: int, num_graphs: int) -> None:
        """Take the graph of a batch and forget the one before.

        Args:
            edge_index: (2, E) sources and targets, sorted by target.
            num_atoms: N.
            num_graphs: B.

        Raises:
            ValueError: if ranks share a graph since the model was built.
        """
        if gp_utils.initialized():
            raise ValueError(
                "graph parallelism must be set up before the model is built, or the model with fast: false"
            )
        if self._tf32 and not (edge_index.is_cuda or self._has_told):
            self._has_told = True
            logging.warning("model.backbone.precision: tf32 exists only on CUDA; here it is fp32.")
        self._edge_index, self._num_atoms = edge_index, num_atoms
        self.now = Now(num_graphs=num_graphs)

    def rotate(self, packed: torch.Tensor) -> None:
        """Make the edges from their rotations (E, P), in the order of `layout`."""
        assert self._edge_index is not None, "the backbone begins a pass before it rotates"
        edges = RotatedEdges.build(self._edge_index, packed, self.layout, num_atoms=self._num_atoms)
        self.now = self.now._replace(edges=edges)

    def prepare(self, weights: Mapping[nn.Module, Any]) -> None:
        """Keep what modules multiply with in this pass, made for all of them together."""
        self.now = self.now._replace(weights=weights)

    @contextmanager
    def again(self, then: Now) -> Iterator[None]:
        """Within the context, be an earlier pass: a block computed again may come after another batch."""
        current, self.now = self.now, then
        try:
            yield
        finally:
            self.now = current

    def __getstate__(self) -> dict[str, Any]:
        """Without the batch: a copy of a model has none, and weights that were made of others cannot be copied."""
        return {**vars(self), "now": Now(), "_edge_index": None}

    @property
    def edges(self) -> RotatedEdges:
        """With their rotations.

        Raises:
            RuntimeError: before the backbone has seen a batch.
        """
        if self.now.edges is None:
            raise RuntimeError("no forward pass is under way: call the backbone before its modules and heads")
        return self.now.edges

    def edges_of(self, edge_index: torch.Tensor) -> RotatedEdges:
        """Those of a graph, for a head.

        Raises:
            ValueError: if the backbone has seen another graph since.
        """
        if edge_index is not self._edge_index:
            raise ValueError(
                "a head got the embedding of one batch, and its backbone has seen another since; call the heads of a "
                "batch before the backbone's next one, and a model from one thread at a time"
            )
        return self.edges

    @property
    def num_graphs(self) -> int:
        """B."""
        return self.now.num_graphs

    def products(self) -> AbstractContextManager[None]:
        """Within the context, products are in TF32 if that was asked for."""
        return tf32_products(True) if self._tf32 else nullcontext()

    def edge_dtype(self, nodes: torch.Tensor) -> torch.dtype:
        """Precision of an edge's features: autocast's, else the one asked for, else that of ``nodes``."""
        return edge_dtype(nodes, self._dtype)


def edge_dtype(nodes: torch.Tensor, wanted: torch.dtype | None = None) -> torch.dtype:
    """Precision of an edge's features: autocast's, else the one asked for, else that of ``nodes``."""
    device = nodes.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return wanted or nodes.dtype


def require_sorted(edge_index: torch.Tensor, *, searched_by_host: bool = False) -> None:
    """Raise ValueError unless edges (2, E) come sorted by target, as fairchem's own search leaves them.

    On a GPU what fairchem searched is taken on trust: looking would wait for the device.
    """
    if searched_by_host and edge_index.is_cuda:
        return
    if bool((edge_index[1].diff() < 0).any()):
        raise ValueError(
            "the edges of a batch (edge_index) are not sorted by their targets; sort them where they are made, leave "
            "them to the model (otf_graph: true), or set model.backbone.fast: false"
        )


def require_known_elements(batch: Batch, count: int) -> None:
    """Raise ValueError for a batch without atoms, or an atomic number that a model of so many has no embedding of.

    On a GPU, where looking would wait for the device, the embedding itself fails.
    """
    numbers = batch.atomic_numbers
    if len(numbers) == 0:
        raise ValueError("the batch has no atoms; leave structures without atoms out of the data")
    if numbers.is_cuda:
        return
    bad = ((numbers < 0) | (numbers >= count)).nonzero().view(-1)
    if len(bad) > 0:
        raise ValueError(
            f"{structure_names(batch, [int(batch.batch[bad[0]])])} has atomic number {numbers[bad[0]]}, and "
            f"model.backbone.max_num_elements is {count}; numbers are from 0, and the largest of the data is below it"
        )


def require_directions(batch: Batch, edge_index: torch.Tensor, vectors: torch.Tensor) -> None:
    """Raise ValueError for an edge (E, 3) without a direction: two atoms in one place, or positions that diverged.

    On a GPU, where looking would wait for the device, the frames of such edges are NaN, and so is what follows.
    """
    if vectors.is_cuda:
        return
    lost = (~batch.pos.isfinite().all(1)).nonzero().view(-1)  # of which a search finds no edges
    if len(lost) > 0:
        structure = structure_names(batch, [int(batch.batch[lost[0]])])
        raise ValueError(f"{structure} has positions that are not finite; correct them, or leave the structure out")
    bad = (~has_direction(vectors)).nonzero().view(-1)
    if len(bad) == 0:
        return
    target, source = edge_index[1, bad[0]], edge_index[0, bad[0]]
    structure = batch.batch[target]
    first = (batch.batch < structure).sum()
    raise ValueError(
        f"atoms {source - first} and {target - first} of {structure_names(batch, [int(structure)])} are "
        f"{vectors[bad[0]].norm():.2g} Å apart, and edges need finite lengths of {SHORTEST:g} Å or more; mend the "
        "positions, or leave the structure out"
    )
