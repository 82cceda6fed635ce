"""The edges of a batch: sorted by target, with their rotations, in pieces."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from dens_plugin.nn.backends.triton.edges_by_atom import EdgesByAtom, edges_of
from dens_plugin.nn.so2.layout import Layout

_CPU_EDGES = 1024  # enough for a matrix product to run at full speed; more would only take memory


class Piece(NamedTuple):
    """Consecutive targets and the edges that end at them.

    Attributes:
        targets: which of `RotatedEdges.targets`.
        edges: which edges.
        degree: the number of edges of every target, or None if they differ.
    """

    targets: slice
    edges: slice
    degree: int | None


@dataclass(frozen=True)
class RotatedEdges:
    """Edges sorted by target.

    Attributes:
        source: (E,) atoms that messages come from.
        targets: (M,) atoms that messages go to, in ascending order.
        offsets: (M + 1,) first edge of every target, and E.
        packed: (E, P) rotations from a node's frame to the edge's, without their zeros (`Layout.packed_starts`).
        layout: of the rotated features.
        num_atoms: N.
        pieces: the targets, a few at a time; those without an edge may be missing.
    """

    source: torch.Tensor
    targets: torch.Tensor
    offsets: torch.Tensor
    packed: torch.Tensor
    layout: Layout
    num_atoms: int
    pieces: tuple[Piece, ...]

    @classmethod
    def build(cls, edge_index: torch.Tensor, packed: torch.Tensor, layout: Layout, *, num_atoms: int) -> RotatedEdges:
        """All atoms are targets.

        Args:
            edge_index: (2, E) sources and targets, sorted by target.
            packed: (E, P) rotations.
            layout: of their rows.
            num_atoms: N.
        """
        targets = torch.arange(num_atoms, device=edge_index.device)
        return cls._of(edge_index, targets, packed, layout, num_atoms)

    def ending_at(self, atoms: torch.Tensor, chosen: torch.Tensor) -> RotatedEdges:
        """The edges that end at some atoms, of `RotatedEdges` of all atoms.

        Args:
            atoms: (M,) in ascending order.
            chosen: (e,) which edges end at them, in ascending order.
        """
        edge_index = torch.stack([self.source[chosen], self.target[chosen]])
        return self._of(edge_index, atoms, self.packed[chosen], self.layout, self.num_atoms)

    def parts(self, limit: int) -> tuple[tuple[Piece, RotatedEdges], ...]:
        """Pieces of about so many edges, on a CPU, and the edges of each by themselves; made once."""
        if limit not in self._parts:
            self._parts[limit] = tuple(self._made(limit))
        return self._parts[limit]

    @cached_property
    def _parts(self) -> dict[int, tuple[tuple[Piece, RotatedEdges], ...]]:
        return {}

    def _made(self, limit: int) -> Iterator[tuple[Piece, RotatedEdges]]:
        for piece in _pieces(self.offsets, limit):
            offsets = self.offsets[piece.targets.start : piece.targets.stop + 1]
            whole = Piece(slice(0, len(offsets) - 1), slice(0, piece.edges.stop - piece.edges.start), piece.degree)
            part = dataclasses.replace(
                self,
                source=self.source[piece.edges],
                targets=self.targets[piece.targets],
                offsets=offsets - offsets[0],
                packed=self.packed[piece.edges],
                pieces=(whole,),
            )
            yield piece, part

    def of_order_zero(self) -> RotatedEdges:
        """The same edges with the coefficients of m = 0 only."""
        layout = dataclasses.replace(self.layout, mmax=0)
        return dataclasses.replace(self, packed=self.packed[:, : layout.packed_starts[-1]], layout=layout)

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is made of these edges once, by whoever needs it, and kept with them."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[Hashable, Any]:
        return {}

    @cached_property
    def rotation(self) -> torch.Tensor:
        """(E, S, (lmax + 1)^2) rotations with their zeros."""
        size, columns = len(self.layout), (self.layout.lmax + 1) ** 2
        places = self.layout.constants_for(self.packed).of_packed
        out = self.packed.new_zeros(len(self.packed), size * columns)
        return out.index_copy_(1, places, self.packed).view(-1, size, columns)

    @cached_property
    def target(self) -> torch.Tensor:
        """(E,) atom that each message goes to."""
        return self.targets.repeat_interleave(self.offsets.diff(), output_size=len(self.source))

    @cached_property
    def row(self) -> torch.Tensor:
        """(E,) number among ``targets`` of the atom that each message goes to."""
        numbers = torch.arange(len(self.targets), device=self.source.device)
        return numbers.repeat_interleave(self.offsets.diff(), output_size=len(self.source))

    @cached_property
    def in_both_orders(self) -> EdgesByAtom:
        """By target and by source, for the kernels."""
        return edges_of(self.source, self.target, self.num_atoms)

    @cached_property
    def scale(self) -> torch.Tensor:
        """(S,) that of the layout, where the edges are."""
        return self.layout.constants_for(self.packed).scale

    @classmethod
    def _of(
        cls,
        edge_index: torch.Tensor,
        targets: torch.Tensor,
        packed: torch.Tensor,
        layout: Layout,
        num_atoms: int,
    ) -> RotatedEdges:
        source, target = edge_index.long().contiguous()
        first = torch.searchsorted(target, targets)
        offsets = torch.cat([first, first.new_full((1,), len(source))])
        pieces = tuple(_pieces(offsets, _CPU_EDGES)) if len(source) else ()
        return cls(source, targets, offsets, packed.contiguous(), layout, num_atoms, pieces)


def by_parts(
    function: Callable[[RotatedEdges, torch.Tensor], torch.Tensor],
    edges: RotatedEdges,
    of_edges: torch.Tensor,
    limit: int,
) -> torch.Tensor:
    """(M, ...) sums at the targets; of a few edges at a time where nothing is kept for a gradient, on a CPU.

    Args:
        function: of edges and what goes with each of them, to the sums at their targets.
        edges: all.
        of_edges: (E, ...).
        limit: about so many edges at a time.
    """
    if len(edges.source) <= limit or edges.source.is_cuda or torch.is_grad_enabled():
        return function(edges, of_edges)
    out = None
    for piece, part in edges.parts(limit):
        of_part = function(part, of_edges[piece.edges])
        out = of_part.new_zeros(len(edges.targets), *of_part.shape[1:]) if out is None else out
        out[piece.targets] = of_part
    assert out is not None, "more edges than the limit are in some part"
    return out


def _pieces(offsets: torch.Tensor, limit: int) -> Iterator[Piece]:
    """Targets with about as many edges each time, and few enough; all at once on a GPU."""
    if offsets.is_cuda:  # to ask it how many each has would mean to wait for it
        yield Piece(slice(None), slice(None), None)
        return
    bounds = offsets.tolist()
    count = math.ceil(bounds[-1] / limit)
    ends = sorted({bisect.bisect_left(bounds, bounds[-1] * number / count) for number in range(1, count + 1)})
    for start, end in itertools.pairwise([0, *ends]):
        degrees = {bounds[row + 1] - bounds[row] for row in range(start, end)}
        degree = degrees.pop() if len(degrees) == 1 else None
        yield Piece(slice(start, end), slice(bounds[start], bounds[end]), degree)
