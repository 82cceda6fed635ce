"""The largest batch whose peak of memory is within a budget, by measuring ever larger ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

_FITTED = 3  # the largest batches measured: the peak of small ones may lie in the optimiser's step, not the model's


class Measured(NamedTuple):
    """Training steps at one batch size.

    Attributes:
        batch: structures.
        peak: bytes; infinite where memory ran out.
        seconds: of one step.
    """

    batch: int
    peak: float
    seconds: float


class Line(NamedTuple):
    """Memory as ``fixed`` bytes and ``per_structure`` bytes for each structure of a batch."""

    fixed: float
    per_structure: float

    def peak(self, batch: int) -> float:
        """Bytes for a batch."""
        return self.fixed + self.per_structure * batch

    def largest(self, budget: float) -> float:
        """The largest batch within a budget; infinite where memory does not grow with it."""
        return (budget - self.fixed) // self.per_structure if self.per_structure > 0 else math.inf


def line_through(points: Sequence[Measured]) -> Line:
    """The line of least squares through the largest batches that fitted; all of the memory per structure for only one.

    Args:
        points: at least one of finite peak.
    """
    used = sorted(point for point in points if math.isfinite(point.peak))[-_FITTED:]
    batch, peak = (sum(values) / len(used) for values in list(zip(*used, strict=True))[:2])
    spread = sum((point.batch - batch) ** 2 for point in used)
    if spread == 0:
        return Line(0.0, peak / batch)
    slope = sum((point.batch - batch) * (point.peak - peak) for point in used) / spread
    return Line(peak - slope * batch, slope)


def measure_up_to(measure: Callable[[int], Measured], *, budget: float, most: int) -> list[Measured]:
    """Measure batches of 1, 2, 4, ... while the next should fit, then the one that should fill the budget.

    The largest of the returned batches within the budget is the proposal: it was measured, not computed. No batch is
    tried that the line through the smaller ones forbids, since on a CPU running out of memory ends more than a step.

    Args:
        measure: runs training steps at a batch size.
        budget: bytes.
        most: the largest batch to try.
    """
    points = [measure(1)]
    while points[-1].peak <= budget:
        size = min(2 * points[-1].batch, most)
        # A single point does not tell what is fixed: that is found by a batch of two, at most twice as large.
        expected = line_through(points).peak(size) if len(points) > 1 else points[0].peak
        if size == points[-1].batch or expected > budget:
            break
        points.append(measure(size))
    while (size := _next(points, budget, most)) > largest_within(points, budget):
        points.append(measure(size))
    return sorted(points)


def largest_within(points: Sequence[Measured], budget: float) -> int:
    """The largest batch that was measured within a budget; 0 if none was."""
    return max((point.batch for point in points if point.peak <= budget), default=0)


def _next(points: Sequence[Measured], budget: float, most: int) -> int:
    """The batch to try next: by the line, below any that did not fit, and at most twice one that did."""
    best = largest_within(points, budget)
    too_large = min((point.batch for point in points if point.peak > budget), default=most + 1)
    if best == 0:
        return 0
    return int(min(line_through(points).largest(budget), too_large - 1, 2 * best, most))
