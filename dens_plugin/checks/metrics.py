"""The block ``evaluation_metrics``: what is computed, and what chooses the best weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dens_plugin.settings import suggestion

if TYPE_CHECKING:
    from dens_plugin.objectives.base import Objective

_OF_FORCES = ["mae", "cosine_similarity", "magnitude_error"]


def with_metrics(settings: Mapping[str, Any] | None, objective: Objective) -> dict[str, Any]:
    """The block ``evaluation_metrics``, with what suits an objective where it says nothing.

    The first of forces, energy, another label and the objective's own output that there is chooses the best weights.

    Raises:
        ValueError: if nothing is trained on or computed, or ``primary_metric`` is not among what is computed.
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
    if not computed | own:
        nothing = "nothing is computed: name a metric of a label under evaluation_metrics.metrics, as `forces: [mae]`"
        raise ValueError(nothing if names else "there is nothing to train on: name an output under `loss_functions`")
    wanted = settings.setdefault("primary_metric", preferred[0])
    if wanted not in computed | own:
        raise ValueError(
            f"evaluation_metrics.primary_metric '{wanted}' is not computed; {suggestion(wanted, computed | own)}"
        )
    return settings
