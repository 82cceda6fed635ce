"""Metrics of training batches, in which a selection of rows may be empty."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairchem.core.modules.evaluator import Evaluator

from dens_plugin.settings import suggestion


class RowEvaluator(Evaluator):
    """fairchem's evaluator without metrics that need every atom, and with empty selections left out."""

    def __init__(self, task: str | None = None, eval_metrics: dict[str, list[str]] | None = None) -> None:
        super().__init__(task=task, eval_metrics=eval_metrics)
        self.target_metrics = {
            target: [name for name in names if name != "energy_forces_within_threshold"]
            for target, names in self.target_metrics.items()
        }

    def update(self, key: str, stat: Any, metrics: dict[str, Any]) -> dict[str, Any]:
        """Add a statistic to the running metrics; a mean over nothing changes nothing, nor does a NaN."""
        if isinstance(stat, dict) and stat["numel"] == 0:
            return metrics
        if not math.isfinite(stat["total"] if isinstance(stat, dict) else stat):
            return metrics  # of a step that is left out
        return super().update(key, stat, metrics)


def require_metric(settings: dict[str, Any]) -> None:
    """Raise ValueError if ``evaluation_metrics.primary_metric`` is none of the metrics that are computed."""
    computed = {
        name if target == "misc" else f"{target}_{name}"
        for target, names in settings["metrics"].items()
        for name in names
    }
    wanted = settings["primary_metric"]
    if wanted not in computed:
        raise ValueError(
            f"evaluation_metrics.primary_metric '{wanted}' is not computed; {suggestion(wanted, computed)}"
        )


def statistics(errors: torch.Tensor) -> dict[str, float]:
    """Errors of any shape as fairchem's evaluator keeps them."""
    return {"total": errors.sum().item(), "numel": errors.numel()}
