"""Budgets for batches as they come: few, tight, growing, and the same for all workers."""

from __future__ import annotations

import logging
import multiprocessing
import random

import pytest
from padded import equiformer_v2, loaded

from dens_plugin.padding import buckets as module
from dens_plugin.padding.buckets import Buckets, PaddingCollater
from dens_plugin.padding.budgets import Budget
from dens_plugin.padding.signature import signature


def slab(generator):
    """Atoms of a structure of OC20's sizes, of mean 80 and from 20 to 225."""
    return int(min(max(generator.lognormvariate(4.27, 0.45), 20), 225))


def need_of(generator, count):
    """What DeNS's batch of so many slabs takes up, with 20 edges at an atom and half of the structures corrupted."""
    sizes = [slab(generator) for _ in range(count)]
    rows = {"forces": 0, "noise": 0}
    for size in sizes:
        free, is_corrupted = int(size * generator.uniform(0.45, 0.65)), generator.random() < 0.5
        noise = free // 2 if is_corrupted else 0
        rows = {"forces": rows["forces"] + free - noise, "noise": rows["noise"] + noise}
    edges = int(sum(sizes) * 20 * generator.uniform(0.98, 1))
    return Budget(sum(sizes), edges, count, {"energy": count, **rows}, {name: 20 * size for name, size in rows.items()})


@pytest.mark.parametrize("count", [4, 8])
def test_a_handful_wastes_little_of_the_papers_batches(count):
    generator = random.Random(0)
    buckets = Buckets([need_of(generator, count) for _ in range(24)])
    assert len(buckets.budgets) <= 5
    for _ in range(400):
        need = need_of(generator, count)
        assert buckets.budget_for(need).holds(need)
    assert len(buckets.budgets) <= 7
    assert 0.01 < buckets.waste.edges < 0.16
    assert abs(buckets.waste.edges - buckets.waste.atoms) < 0.03


def test_batches_of_one_size_have_one_budget():
    """Molecules of one composition, whose edges are about as many."""
    needs = [Budget(72, 300 + number, 8, {"energy": 8}, {}) for number in range(5)]
    buckets = Buckets(needs)
    (budget,) = buckets.budgets
    assert all(budget.holds(need) for need in needs)
    assert budget.structures == 9


def test_takes_the_smallest_that_fits():
    buckets = Buckets([Budget(number, 10 * number, 2) for number in (10, 50, 100, 200)])
    sizes = [buckets.budget_for(Budget(number, 10 * number, 2)).atoms for number in (9, 48, 90, 190)]
    assert sizes == sorted(set(sizes))
    assert buckets.budget_for(Budget(9, 1000, 2)).edges >= 1000


def test_grows_where_none_fits_and_says_so(caplog):
    caplog.set_level(logging.INFO)
    buckets = Buckets([Budget(20, 100, 2, {"forces": 10}, {"forces": 60})])
    (before,) = buckets.budgets
    need = Budget(40, 500, 3, {"forces": 5}, {"forces": 20})
    budget = buckets.budget_for(need)
    assert budget.holds(need)
    assert buckets.budgets == [before, budget]
    assert "fits no budget; there is a new one" in caplog.text
    assert buckets.budget_for(need) == budget


def test_the_number_of_budgets_has_a_limit():
    buckets = Buckets([Budget(20, 100, 2)])
    for number in range(1, 30):
        assert buckets.budget_for(Budget(20 * number, 100 * number, 2)).edges >= 100 * number
    assert len(buckets.budgets) == 7


def test_single_atoms_and_batches_without_edges():
    buckets = Buckets([Budget(2, 0, 2, {"energy": 2, "forces": 2}, {"forces": 0, "energy": 0}), Budget(1, 0, 1)])
    assert buckets.budget_for(Budget(1, 0, 1, {"energy": 1, "forces": 1}, {"forces": 0})).edges == 0


def test_the_last_batch_of_an_epoch_fits_too():
    generator = random.Random(1)
    buckets = Buckets([need_of(generator, 8) for _ in range(24)])
    number, need = len(buckets.budgets), need_of(generator, 1)
    assert buckets.budget_for(need).holds(need)
    assert len(buckets.budgets) == number


def test_workers_share_what_grew():
    buckets, need = Buckets([Budget(20, 100, 2)]), Budget(50, 400, 2)
    worker = multiprocessing.get_context("fork").Process(target=buckets.budget_for, args=(need,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert buckets.budgets[-1].holds(need)
    assert buckets.waste.atoms > 0


def test_a_worker_that_was_killed_while_a_budget_grew_stops_no_other(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    buckets, need = Buckets([Budget(20, 100, 2)]), Budget(50, 400, 2)
    buckets._lock.acquire()
    assert buckets.budget_for(need).holds(need)


def test_a_collater_makes_batches_of_few_sizes():
    model = equiformer_v2()
    batches = [loaded(model, sizes=sizes) for sizes in ((5, 6), (6, 7), (7, 6), (12, 14), (14, 13))]
    collate = PaddingCollater(lambda numbers: batches[numbers[0]], Buckets([Budget.of(batch) for batch in batches]))
    found = {signature(collate([number])) for number in range(5)}
    assert 1 < len(found) <= len(collate.buckets.budgets)
