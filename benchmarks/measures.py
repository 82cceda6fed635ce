"""What is measured, how two contestants are compared, and the goals beside a figure.

A ratio says how many times less ours costs: the other's cost over ours within a round, its median and quartiles over
rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

STEP, INFERENCE, STEP_MEMORY, INFERENCE_MEMORY = "step, s", "inference, s", "step, MiB", "inference, MiB"
GRADIENTS = "forward and backward, s"  # of the step: all but AdamW
GOALS_AGAINST = "fairchem_dens"

Costs = Mapping[str, Sequence[float]]  # contestant -> one figure a round


class Goal(NamedTuple):
    """How many times less ours is to cost than fairchem's DeNS, at the paper's sizes with 12 layers."""

    required: float
    aim: float


class Ratio(NamedTuple):
    """How many times less ours costs than another contestant, over all rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float


_MEMORY = {STEP_MEMORY: Goal(3.0, 4.0), INFERENCE_MEMORY: Goal(20.0, 30.0)}
_CPU, _CPU_TUNED = Goal(3.0, 5.0), Goal(2.2, 3.0)
GOALS = {  # device, whether the allocator keeps its pages -> precision and measure
    ("cpu", False): {"fp32": {STEP: _CPU, INFERENCE: _CPU, **_MEMORY}},
    ("cpu", True): {"fp32": {STEP: _CPU_TUNED, INFERENCE: _CPU_TUNED, **_MEMORY}},
    ("cuda", False): {
        "fp32": {STEP: Goal(2.0, 3.0), INFERENCE: Goal(2.0, 4.0), **_MEMORY},
        "bf16": {STEP: Goal(2.0, 4.0)},  # against fairchem's AMP
    },
}


def goal(measure: str, *, precision: str, device: str, is_tuned: bool) -> Goal | None:
    """What to reach against fairchem's DeNS, or None."""
    return GOALS[device, is_tuned and device == "cpu"].get(precision, {}).get(measure)


def ratio(costs: Costs, other: str) -> Ratio:
    """Quartiles of other / ours within each round."""
    ratios = np.array(costs[other]) / np.array(costs["ours"])
    lower, median, upper = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return Ratio(median, lower, upper)


def ratios(costs: Costs) -> dict[str, dict[str, float]]:
    """Those to all others, for a JSON file."""
    return {other: ratio(costs, other)._asdict() for other in costs if other != "ours"}


def medians(costs: Costs) -> dict[str, float]:
    """Of each contestant."""
    return {name: float(np.median(values)) for name, values in costs.items()}


def ratio_cell(value: Mapping[str, Any]) -> str:
    """A ratio with its quartiles in a table."""
    return f"{value['median']:.2f} ({value['lower_quartile']:.2f}-{value['upper_quartile']:.2f})"
