"""Buckets: the few budgets of a loader, made by what its first batches take up, and growing where one takes more.

Workers share them, so that a batch has the same size whichever of them makes it. A budget that grows depends on which
batch came first; results depend on budgets to rounding alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from dens_plugin.padding.budgets import Budget
from dens_plugin.padding.pad import pad

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from torch_geometric.data import Batch, Data

_LOOKED_AT = 24  # batches, for budgets to start with
_PLANNED = 5  # budgets at the start
_MOST = 7  # at a time; the next one replaces that which it grew out of
_APART = 0.95  # of the size of the next larger one, which a budget must be below to be worth having
_MARGIN = 0.25  # above the largest of the first batches, of what it takes up more than half of them do
_PATIENCE = 5.0  # seconds to wait for another worker
_GROWTH = 0.05  # above a batch that no budget holds


class Waste(NamedTuple):
    """Shares of ghosts among what was made.

    Attributes:
        atoms: of all atoms.
        edges: of all edges.
    """

    atoms: float
    edges: float

    def __str__(self) -> str:
        return f"{self.atoms:.1%} of the atoms and {self.edges:.1%} of the edges are ghosts"


class Buckets:
    """Budgets in memory that processes share, and a count of what was put into them.

    Args:
        needs: what some batches of the loader take up.
    """

    def __init__(self, needs: Sequence[Budget]) -> None:
        budgets = _planned(needs)
        self._names = tuple(budgets[0].rows), tuple(budgets[0].incoming)
        planned = [_numbers(budget) for budget in budgets]
        self._table = torch.zeros(_MOST, len(planned[0]), dtype=torch.long).share_memory_()
        self._count = torch.zeros((), dtype=torch.long).share_memory_()
        self._made = torch.zeros(2, 2, dtype=torch.float64).share_memory_()  # atoms and edges: real ones, all
        self._table[: len(planned)], self._count[()] = torch.tensor(planned), len(planned)
        self._lock = multiprocessing.get_context("fork").Lock()  # of the loader's workers

    @property
    def budgets(self) -> list[Budget]:
        """As they are now, the smallest first."""
        table = self._table[: int(self._count)].tolist()
        return sorted((_budget(numbers, *self._names) for numbers in table), key=lambda budget: budget.size)

    @property
    def are_used(self) -> bool:
        """Whether any batch was made."""
        return bool(self._made.any())

    @property
    def waste(self) -> Waste:
        """Of all batches so far."""
        real, made = self._made.unbind(dim=1)
        return Waste(*(1 - real / made.clamp(min=1)).tolist())

    def budget_for(self, need: Budget) -> Budget:
        """The smallest that holds a batch of this need; one of them grows where none does."""
        budget = self._smallest(need) or self._grown(need)
        self._made += torch.tensor([[need.atoms, budget.atoms], [need.edges, budget.edges]])
        return budget

    def _smallest(self, need: Budget) -> Budget | None:
        return next((budget for budget in self.budgets if budget.holds(need)), None)

    def _grown(self, need: Budget) -> Budget:
        """A new budget, unless another worker made one meanwhile."""
        is_alone = self._lock.acquire(timeout=_PATIENCE)  # a worker that was killed does not give it back
        try:
            return self._smallest(need) or self._added(self.budgets, need)
        finally:
            if is_alone:
                self._lock.release()

    def _added(self, budgets: list[Budget], need: Budget) -> Budget:
        before = next((each for each in budgets if each.edges >= need.edges and each.atoms > need.atoms), budgets[-1])
        budget = Budget.around([before, need.rounded(_GROWTH)]).with_room_for([need])
        place = int(self._count) if self._count < _MOST else self._table.tolist().index(_numbers(before))
        self._table[place] = torch.tensor(_numbers(budget))
        self._count[()] = max(int(self._count), place + 1)
        logging.info(f"Padding: a batch of {need} fits no budget; there is a new one, {budget}.")
        return budget


@dataclass
class PaddingCollater:
    """Collates structures into a batch of one of a few sizes.

    Args:
        collate: gives a batch with a record of its neighbours.
        buckets: the sizes.
    """

    collate: Callable[[Sequence[Data]], Batch]
    buckets: Buckets

    def __call__(self, structures: Sequence[Data]) -> Batch:
        """The batch of some structures, with ghosts."""
        batch = self.collate(structures)
        return pad(batch, self.buckets.budget_for(Budget.of(batch)))


def padded(loader: DataLoader) -> Buckets:
    """Let a loader pad its batches to a few sizes, made by what its first batches take up; returns these sizes."""
    first = itertools.islice(iter(loader.batch_sampler), _LOOKED_AT)
    batches = (loader.collate_fn([loader.dataset[int(index)] for index in indices]) for indices in first)
    buckets = Buckets([Budget.of(batch) for batch in batches])
    loader.collate_fn = PaddingCollater(loader.collate_fn, buckets)
    return buckets


def _planned(needs: Sequence[Budget]) -> list[Budget]:
    """Budgets that waste least with these batches, without those of nearly the same size.

    Of any of them as large a share of its atoms and edges may count for an output as of any batch: how many count is
    mostly chance, which must not decide about the size.
    """
    ordered, structures = sorted(needs, key=lambda need: need.size), Budget.around(needs).structures + 1
    found: list[Budget] = []
    margin = _MARGIN * (1 - ordered[len(ordered) // 2].size / ordered[-1].size)
    for share in reversed(_shares(ordered)):
        most = Budget.around(share)
        scaled = [dataclasses.replace(need.scaled_to(most), structures=structures) for need in needs]
        budget = Budget.around([most, *scaled]).rounded(0.0 if found else margin).with_room_for(share)
        if not found or budget.size < _APART * found[-1].size:
            found.append(budget)
    return found


def _shares(ordered: Sequence[Budget]) -> list[Sequence[Budget]]:
    """Batches in ascending order cut into shares, each of which takes a budget of its largest, for the least in all."""

    def shares(cuts: tuple[int, ...]) -> list[Sequence[Budget]]:
        return [ordered[start:end] for start, end in itertools.pairwise((0, *cuts, len(ordered)))]

    def cost(cuts: tuple[int, ...]) -> int:
        return sum(len(share) * share[-1].size for share in shares(cuts))

    number = min(_PLANNED, len(ordered))
    return shares(min(itertools.combinations(range(1, len(ordered)), number - 1), key=cost))


def _numbers(budget: Budget) -> list[int]:
    return [
        budget.atoms,
        budget.edges,
        budget.structures,
        budget.pairs,
        *budget.rows.values(),
        *budget.incoming.values(),
    ]


def _budget(numbers: Sequence[int], of_rows: Sequence[str], of_incoming: Sequence[str]) -> Budget:
    atoms, edges, structures, pairs, *rest = numbers
    rows, incoming = rest[: len(of_rows)], rest[len(of_rows) :]
    return Budget(
        atoms,
        edges,
        structures,
        dict(zip(of_rows, rows, strict=True)),
        dict(zip(of_incoming, incoming, strict=True)),
        pairs,
    )
