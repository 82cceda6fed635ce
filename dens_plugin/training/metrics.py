"""Metrics: which there are for a config, and those of an objective on a corrupted copy of the validation set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dens_plugin.fields import rows_of
from dens_plugin.objectives.base import Errors
from dens_plugin.settings import suggestion

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.objectives.base import Objective, Outputs

_OF_FORCES = ["mae", "cosine_similarity", "magnitude_error"]


def with_metrics(settings: Mapping[str, Any] | None, objective: Objective) -> dict[str, Any]:
    """The block ``evaluation_metrics``, with what suits an objective where it says nothing.

    The first of forces, energy, another label and the objective's own output that there is chooses the best weights.

    Raises:
        ValueError: if ``primary_metric`` is none of the metrics that are computed.
    """
    names = {label.name for label in objective.labels}
    metrics: dict[str, list[str]] = {name: ["mae"] for name in sorted(names)}
    if "forces" in names:
        metrics["forces"] = list(_OF_FORCES)
    if {"energy", "forces"} <= names:
        metrics["misc"] = ["energy_forces_within_threshold"]
    settings = {"metrics": metrics, **(settings or {})}
    computed = {
        name if target == "misc" else f"{target}_{name}"
        for target, wanted in settings["metrics"].items()
        if target in names or (target == "misc" and names)
        for name in wanted
    }
    own = {f"{output.name}_mae" for output in objective.outputs}
    preferred = [
        name for name in ("forces_mae", "energy_mae", *sorted(computed), *sorted(own)) if name in computed | own
    ]
    wanted = settings.setdefault("primary_metric", preferred[0])
    if wanted not in computed | own:
        raise ValueError(
            f"evaluation_metrics.primary_metric '{wanted}' is not computed; {suggestion(wanted, computed | own)}"
        )
    return settings


class ObjectiveErrors:
    """Sums of an objective's errors over the batches of a corrupted validation set.

    Of each output of its own: ``{name}_relative``, the mean norm of the error over that of the target: 1 is what
    predicting zero has. And the objective's metrics, or ``{name}_mae`` in units of the loss where it has none.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, outputs: Outputs, physical: Outputs, batch: Batch) -> None:
        """Add a batch: its outputs as the loss compares them, and in physical units."""
        predictions, targets = self._objective.predictions(outputs, batch), self._objective.targets(batch)
        metrics = self._objective.metrics(physical, batch)
        for output in self._objective.outputs:
            mask, target = rows_of(batch)[output.name].mask, targets[output.name]
            error = predictions[output.name] - target
            norms = (Errors(value.norm(dim=-1), mask).total() for value in (error, target))
            self._sum(f"{output.name}_relative", *norms)
            metrics.setdefault(f"{output.name}_mae", Errors(error.abs(), mask))
        for name, errors in metrics.items():
            self._sum(name, errors.total(), errors.number())

    def _sum(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (before[0] + total.item(), before[1] + count.item())

    def totals(self) -> dict[str, dict[str, float]]:
        """As fairchem keeps metrics: name -> total and numel, of this rank."""
        return {name: {"total": total, "numel": count} for name, (total, count) in self._sums.items()}
