"""Budgets: sizes that batches are padded to, few enough that each is met often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dens_plugin.backbones.neighbours import Neighbours
from dens_plugin.fields import NEIGHBOURS, rows_of

if TYPE_CHECKING:
    from torch_geometric.data import Batch

LEAST_ATOMS = 2  # of the last ghost structure, as an edge has two ends
_MOST_EDGES = 64  # of a ghost atom, as sums over an atom's edges are taken one by one


@dataclass(frozen=True)
class Budget:
    """Room for a batch with ghosts; or what a batch takes up, without any.

    Attributes:
        atoms: N.
        edges: E.
        structures: B.
        rows: output -> rows that count.
        incoming: output of atoms -> edges that end at them.
    """

    atoms: int
    edges: int
    structures: int
    rows: Mapping[str, int] = field(default_factory=dict)
    incoming: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> Budget:
        """What a batch takes up.

        Raises:
            ValueError: for one without a record of its neighbours.
        """
        record = neighbours_of(batch)
        return cls(
            atoms=len(batch.pos),
            edges=record.edge_index.shape[1],
            structures=batch.num_graphs,
            rows={name: int(rows.mask.sum()) for name, rows in (rows_of(batch) or {}).items()},
            incoming={name: len(edges) for name, edges in record.incoming.items()},
        )

    def holds(self, need: Budget) -> bool:
        """Whether a batch of this need can be padded to this budget."""
        single, spare = self.structures - need.structures - 1, self.edges - need.edges
        ghosts = self.atoms - need.atoms - single
        lacking = {name: size - need.incoming[name] for name, size in self.incoming.items()}
        of_atoms = {name: size for name, size in self.rows.items() if name in lacking}
        return (
            single >= 0
            and ghosts >= LEAST_ATOMS
            and 0 <= spare <= _MOST_EDGES * ghosts
            and all(size >= need.rows[name] for name, size in self.rows.items())
            and all(need.rows[name] < size < self.atoms for name, size in of_atoms.items())  # one ends ghost edges
            and all(lack == 0 or (lack > 0 and spare > 0) for lack in lacking.values())
        )


def neighbours_of(batch: Batch) -> Neighbours:
    """The record of a batch's neighbours.

    Raises:
        ValueError: if it has none.
    """
    record: Neighbours | None = batch.get(NEIGHBOURS)
    if record is None:
        raise ValueError(
            "a batch is padded after its neighbours were found, and this one has no record of them: set "
            "optim.loader_graph: true, or leave out optim.pad"
        )
    return record
