from __future__ import annotations

import math

import pytest

from dens_plugin.probe.batch_fit import Measured, largest_within, line_through, measure_up_to


class Device:
    """Memory that grows as a function says, and what was tried on it."""

    def __init__(self, peak, capacity=math.inf):
        self._peak, self._capacity, self.tried = peak, capacity, []

    def __call__(self, batch):
        self.tried.append(batch)
        peak = self._peak(batch)
        return Measured(batch, peak if peak <= self._capacity else math.inf, 1.0)


def proposed(device, budget, most=1000):
    return largest_within(measure_up_to(device, budget=budget, most=most), budget)


@pytest.mark.parametrize("budget", [13, 17, 33, 100, 1001])
def test_finds_the_largest_that_fits(budget):
    device = Device(lambda batch: 10 + 3 * batch)
    assert proposed(device, budget) == (budget - 10) // 3
    assert len(device.tried) <= math.log2(budget) + 3


def test_tries_nothing_that_the_line_forbids():
    """Running out of a CPU's memory would end more than the step."""
    device = Device(lambda batch: 10 + 3 * batch)
    proposed(device, 100)
    assert max(device.tried) == 30


@pytest.mark.parametrize("bend", [0.5, 0.9, 1.3])
def test_measures_what_it_proposes_where_memory_is_no_line(bend):
    def peak(batch):
        return 20 + 5 * batch**bend

    device = Device(peak)
    best = proposed(device, 200)
    assert best in device.tried
    assert peak(best) <= 200
    assert peak(2 * best + 1) > 200


def test_goes_on_below_what_ran_out_of_memory():
    """Fragments and other processes: the device holds less than its budget says."""
    device = Device(lambda batch: 10 * batch, capacity=70)
    best = proposed(device, 100)
    assert 1 <= best <= 7
    assert best in device.tried


def test_stops_at_the_most_that_was_asked_for():
    device = Device(lambda batch: 10 + batch)
    assert proposed(device, 1e9, most=12) == 12
    assert max(device.tried) == 12


def test_memory_that_does_not_grow():
    assert proposed(Device(lambda batch: 10.0), 20, most=8) == 8


def test_nothing_fits():
    device = Device(lambda batch: 10 * batch)
    assert proposed(device, 5) == 0
    assert device.tried == [1]


def test_the_line_is_that_of_the_largest_batches():
    """Of the smallest the peak is the optimiser's."""
    points = [Measured(batch, max(50.0, 10 + 3 * batch), 1.0) for batch in (1, 2, 4, 16, 32, 64)]
    line = line_through([*points, Measured(128, math.inf, 1.0)])
    assert line.per_structure == pytest.approx(3)
    assert line.fixed == pytest.approx(10)
    assert line.largest(100) == 30
