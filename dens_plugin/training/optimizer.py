"""What follows the gradients, in few passes over the memory: clipping, the optimiser's step and the averages.

fairchem walks through all parameters several times: AdamW makes some ten passes over each in torch's default, the
averages four, clipping multiplies every gradient even by one. Here each is one pass where torch has a kernel for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch.optim.swa_utils import get_ema_multi_avg_fn

_FUSED = ("Adam", "AdamW")
_WAYS = ("fused", "foreach", "capturable", "differentiable")  # options of torch about how, not what, to compute
_ADDED_TO_NORM = 1e-6  # by torch's `clip_grad_norm_`, before it divides


class Averages(ExponentialMovingAverage):
    """fairchem's averages, same numbers and state, with s + (1 - decay) (p - s) in one pass and no temporary tensor."""

    def update(self, parameters: Iterable[torch.nn.Parameter] | None = None) -> None:
        """Move the averages towards the parameters, those they were made of by default."""
        if self.num_updates is not None:  # a warm-up of the decay, which no trainer asks for
            super().update(parameters)
        elif self.shadow_params:
            get_ema_multi_avg_fn(self.decay)(self.shadow_params, list(self._get_parameters(parameters)), None)


def with_fused_step(optim: Mapping[str, Any], parameters: Iterable[torch.Tensor]) -> dict[str, Any]:
    """The ``optim`` block with ``optimizer_params.fused``, where it does not say how to step and torch can.

    The fused step differs from torch's others in the last digit (2e-7 relative) and is deterministic.

    Args:
        optim: the block as a person wrote it, which stays as it is.
        parameters: of the model.
    """
    options = optim.get("optimizer_params") or {}
    known = optim.get("optimizer", "AdamW") in _FUSED and not set(_WAYS) & set(options)
    if known and all(value.device.type in ("cpu", "cuda") and value.is_floating_point() for value in parameters):
        options = {**options, "fused": True}
    return {**optim, "optimizer_params": options}


def keep_way_of_stepping(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser step in its own way after loading a state, rather than in that of the run that saved it."""
    optimizer.register_load_state_dict_pre_hook(_with_own_ways)


def _with_own_ways(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    groups = zip(state["param_groups"], optimizer.param_groups, strict=False)  # torch itself compares their number
    own = [saved | {way: group[way] for way in _WAYS if way in group} for saved, group in groups]
    return {**state, "param_groups": [*own, *state["param_groups"][len(own) :]]}


def is_left_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``--amp`` found an overflow, after which a fused optimiser is called and leaves the step out itself."""
    found = getattr(optimizer, "found_inf", None)  # torch's scaler sets it around the call
    return found is not None and bool(found.item())


def norm_of(gradients: list[torch.Tensor]) -> torch.Tensor:
    """() the 2-norm of all gradients together, as torch's `clip_grad_norm_` computes it."""
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_to(gradients: list[torch.Tensor], norm: torch.Tensor, limit: float) -> None:
    r"""Scale gradients of a known ``norm`` down to ``limit``, as torch does, which also multiplies by one.

    .. math:: g \leftarrow g \min(1, limit / (norm + 10^{-6}))
    """
    factor = limit / (norm + _ADDED_TO_NORM)
    if factor < 1:
        torch._foreach_mul_(gradients, factor)
