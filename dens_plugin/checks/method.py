"""What a run trains with, as its objective says it: no method is known here by name.

A baseline is a run whose objective predicts nothing of its own beside the labels of the data, and whose weights do not
come from another run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from dens_plugin.checks.objective import objective_from_config
from dens_plugin.objectives.base import Objective

UNKNOWN = "–"
_LABELS = ("energy", "forces", "stress")
_LEVELS = 1001  # of uniform numbers, for the mean size of noise that varies


class Method(NamedTuple):
    """How a run was trained.

    Attributes:
        name: of the objective, the file that it is defined in; `UNKNOWN` where no config says it.
        outputs: names of what it predicts besides energy and forces.
        noise: mean absolute component of the noise in Å, the error of predicting none; None without noise.
        labels: names of what it is trained on of the data's labels; energy and forces where no config says it.
        is_fine_tuned: whether its first weights come from another run, such as a pre-training.
    """

    name: str
    outputs: tuple[str, ...]
    noise: float | None = None
    labels: tuple[str, ...] = ("energy", "forces")
    is_fine_tuned: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether it predicts nothing of its own, from weights that were drawn."""
        return not self.outputs and not self.is_fine_tuned

    def is_baseline_of(self, other: Method) -> bool:
        """Whether the other does more: predicts something of its own, or starts from weights of another run."""
        does_more = bool(other.outputs) or (other.is_fine_tuned and not self.is_fine_tuned)
        return not self.outputs and does_more and (other.is_fine_tuned or not self.is_fine_tuned)


def method_of(config: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> Method:
    """The method of a run, by the config of its checkpoint, or by the metrics it printed where that tells nothing."""
    is_fine_tuned = bool((config.get("task") or {}).get("warm_start"))
    try:
        objective = objective_from_config(config)
    except (ValueError, KeyError, TypeError):  # a config of another version, or none yet
        block = (config.get("task") or {}).get("objective") or {}
        return Method(str(block.get("name", UNKNOWN)), _printed_outputs(history), is_fine_tuned=is_fine_tuned)
    name = type(objective).__module__.rpartition(".")[2]
    outputs = tuple(output.name for output in objective.outputs)
    labels = tuple(label.name for label in objective.labels)
    return Method(name, outputs, _mean_noise(objective), labels, is_fine_tuned)


def _printed_outputs(history: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Quantities other than labels of which training batches have errors."""
    metrics = {key for row in history if row["split"] == "train" for key in row}
    names = {key.removesuffix("_mae") for key in metrics if key.endswith("_mae")}
    return tuple(sorted(name for name in names if not name.startswith(_LABELS)))


def _mean_noise(objective: Objective) -> float | None:
    """Mean of |x| of a normal distribution, over the structures' standard deviations."""
    sigma = getattr(objective, "sigma", None)
    if sigma is None:
        return None
    if isinstance(sigma, (int, float)):
        return math.sqrt(2 / math.pi) * sigma
    return math.sqrt(2 / math.pi) * float(sigma.sample(torch.linspace(0, 1, _LEVELS)[:-1]).mean())
