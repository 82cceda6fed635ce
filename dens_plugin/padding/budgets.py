"""Budgets: what a batch takes up, and the size that it is padded to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dens_plugin.backbones.neighbours import Neighbours
from dens_plugin.fields import NEIGHBOURS, rows_of

if TYPE_CHECKING:
    from torch_geometric.data import Batch

_LEAST_ATOMS = 2  # of the last ghost structure, as an edge has two ends
_ALIGNED = 8  # what a GPU multiplies at once
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
        pairs: H, of edges in opposite directions, where a network takes these.
    """

    atoms: int
    edges: int
    structures: int
    rows: Mapping[str, int] = field(default_factory=dict)
    incoming: Mapping[str, int] = field(default_factory=dict)
    pairs: int = 0

    def __str__(self) -> str:
        return f"{self.atoms} atoms, {self.edges} edges and {self.structures} structures"

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
            pairs=0 if record.pairs is None else len(record.pairs),
        )

    @classmethod
    def around(cls, needs: Iterable[Budget]) -> Budget:
        """The most that some batches take up, each by itself; no ghosts have room beside them."""
        needs = list(needs)

        def most(sizes: list[Mapping[str, int]]) -> dict[str, int]:
            names = [name for name in sizes[0] if all(name in each for each in sizes)]
            return {name: max(each[name] for each in sizes) for name in names}

        return cls(
            max(need.atoms for need in needs),
            max(need.edges for need in needs),
            max(need.structures for need in needs),
            most([need.rows for need in needs]),
            most([need.incoming for need in needs]),
            max(need.pairs for need in needs),
        )

    @property
    def size(self) -> int:
        """One number to compare budgets by: most work is proportional to edges."""
        return self.edges + self.atoms

    def scaled_to(self, other: Budget) -> Budget:
        """What a batch of as many atoms and edges as another would take up, if as large a share of them counted."""
        of_atoms, of_edges = other.atoms / max(self.atoms, 1), other.edges / max(self.edges, 1)
        rows = {name: math.ceil(size * of_atoms) if name in self.incoming else size for name, size in self.rows.items()}
        incoming = {name: math.ceil(size * of_edges) for name, size in self.incoming.items()}
        return Budget(other.atoms, other.edges, other.structures, rows, incoming, other.pairs)

    def rounded(self, margin: float = 0.0) -> Budget:
        """At least this and a share ``margin`` of it, in numbers of six binary digits."""

        def up(number: int) -> int:
            wanted = math.ceil(number * (1 + margin))
            step = 2 ** max(wanted.bit_length() - 6, 0)
            return -(-wanted // step) * step

        of_outputs = ({name: up(size) for name, size in sizes.items()} for sizes in (self.rows, self.incoming))
        return Budget(up(self.atoms), up(self.edges), self.structures, *of_outputs, up(self.pairs))

    def with_room_for(self, needs: Iterable[Budget]) -> Budget:
        """At least this, with ghosts beside each of some batches, none of which takes up more than this."""
        needs = list(needs)
        structures = max(self.structures, *(need.structures + 1 for need in needs))
        edges = (self.edges // _ALIGNED + 1) * _ALIGNED if self.pairs or any(self.incoming.values()) else self.edges
        rows = {name: size + (name in self.incoming) for name, size in self.rows.items()}
        atoms = max(self.atoms, 1 + max((rows[name] for name in self.incoming), default=0))
        for need in needs:
            linked = max(_LEAST_ATOMS, math.ceil((edges - need.edges) / _MOST_EDGES))
            atoms = max(atoms, need.atoms + structures - need.structures - 1 + linked)
        return dataclasses.replace(self, atoms=atoms, edges=edges, structures=structures, rows=rows)

    def holds(self, need: Budget) -> bool:
        """Whether a batch of this need can be padded to this budget."""
        single, spare = self.structures - need.structures - 1, self.edges - need.edges
        ghosts = self.atoms - need.atoms - single
        lacking = {name: size - need.incoming[name] for name, size in self.incoming.items()}
        of_atoms = {name: size for name, size in self.rows.items() if name in lacking}
        of_edges = [*lacking.values(), self.pairs - need.pairs]
        return (
            single >= 0
            and ghosts >= _LEAST_ATOMS
            and 0 <= spare <= _MOST_EDGES * ghosts
            and all(size >= need.rows[name] for name, size in self.rows.items())
            and all(need.rows[name] < size < self.atoms for name, size in of_atoms.items())  # one ends ghost edges
            and all(lack == 0 or (lack > 0 and spare > 0) for lack in of_edges)
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
