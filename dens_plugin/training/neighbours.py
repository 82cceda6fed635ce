"""Neighbours found by the loader: in its workers, beside the model's work rather than in front of it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fairchem.core.models.base import HydraModel

from dens_plugin.backbones.description import describe
from dens_plugin.backbones.neighbours import Search, read_or_find, with_neighbours
from dens_plugin.settings import switch
from dens_plugin.training.steps import LOADER_WORKERS

if TYPE_CHECKING:
    from torch import nn
    from torch_geometric.data import Batch, Data

LOADER_GRAPH = "loader_graph"  # key of ``optim``


@dataclass
class NeighbourCollater:
    """Collates structures into a batch with its neighbours.

    Args:
        collate: gives a batch whose positions are final.
        search: what to look for.
    """

    collate: Callable[[Sequence[Data]], Batch]
    search: Search

    def __call__(self, structures: Sequence[Data]) -> Batch:
        """The batch of some structures, with the edges between them."""
        return with_neighbours(self.collate(structures), self.search)


def loader_search(model: nn.Module, optim: Mapping[str, Any]) -> Search | None:
    """What the loader should look for, after which the model reads it; None if the model does so itself.

    That is the case with ``optim.loader_graph: false``; by default for a model on a GPU without workers, where it would
    wait for a CPU; and, with a message, for models that this is not exact for or was not tried with. On a CPU the
    loader's search is several times faster than fairchem's, with workers or without.

    Args:
        model: without DDP around it; afterwards it reads the neighbours of batches that have them.
        optim: the config's block.

    Raises:
        ValueError: for something else than true or false.
    """
    wanted = optim.get(LOADER_GRAPH)
    if not (_gains(model, optim) if wanted is None else switch(wanted, f"optim.{LOADER_GRAPH}")):
        return None
    known = describe(model)
    if known.search is None:
        level = logging.WARNING if wanted else logging.INFO
        logging.log(level, f"Neighbours are found by the model: {known.own_search}.")
        return None
    backbone = model.backbone if isinstance(model, HydraModel) else model
    # An attribute of this one object: the classes are fairchem's, and a subclass of each would say the same three times
    backbone.generate_graph = functools.partial(read_or_find, backbone, backbone.generate_graph)
    return known.search


def _gains(model: nn.Module, optim: Mapping[str, Any]) -> bool:
    workers = optim.get(LOADER_WORKERS, optim.get("num_workers", 0))
    return workers > 0 or next(model.parameters()).device.type == "cpu"
