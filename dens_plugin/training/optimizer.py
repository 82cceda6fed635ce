"""What follows the gradients, in few passes over the memory: clipping, the optimiser's step and the averages.

fairchem walks through all parameters several times: AdamW makes some ten passes over each in torch's default, the
averages four, clipping multiplies every gradient even by one. Here each is one pass where torch has a kernel for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fairchem.core.models.base import GraphModelMixin
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dens_plugin.backbones.description import describe

_FUSED = ("Adam", "AdamW")
_WAYS = ("fused", "foreach", "capturable", "differentiable")  # options of torch about how, not what, to compute
_ADDED_TO_NORM = 1e-6  # by torch's `clip_grad_norm_`, before it divides


class Averages(ExponentialMovingAverage):
    """fairchem's averages, same numbers and state, with s + (1 - decay) (p - s) in one pass and no temporary tensor.

    They stay where they are, also when a state is loaded.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As fairchem's."""
        own = self.shadow_params
        super().load_state_dict(dict(state_dict))
        for place, value in zip(own, self.shadow_params, strict=True):
            place.copy_(value)
        self.shadow_params = own

    def update(self, parameters: Iterable[torch.nn.Parameter] | None = None) -> None:
        """Move the averages towards the parameters, those they were made of by default."""
        if self.shadow_params:
            get_ema_multi_avg_fn(self._next_decay())(self.shadow_params, list(self._get_parameters(parameters)), None)

    def warm_up(self, wanted: bool, *, updates: int) -> None:
        """Go on with a warm-up or without one, whatever a state that was loaded says, after so many updates."""
        self.num_updates = (updates if self.num_updates is None else self.num_updates) if wanted else None

    def _next_decay(self) -> float:
        """With a warm-up (1 + n) / (10 + n) at most in the n-th update, which soon forgets the first weights."""
        if self.num_updates is None:
            return self.decay
        self.num_updates += 1
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))


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


def spare_from_decay(model: nn.Module) -> None:
    """Let weight decay spare what the authors of a model's backbone spare, heads included.

    fairchem asks a model for its ``no_weight_decay``. Networks in one piece have their own rule; those of backbone and
    heads get one for all networks, which spares embeddings and decays the weights of norms.
    """
    family, rule = describe(model).family, getattr(type(model), "no_weight_decay", None)
    if family is not None and family.undecayed is not None and rule is GraphModelMixin.no_weight_decay:
        model.no_weight_decay = functools.partial(family.undecayed, model)


def keep_way_of_stepping(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser step in its own way after loading a state, rather than in that of the run that saved it."""
    optimizer.register_load_state_dict_pre_hook(_with_own_ways)


def _with_own_ways(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    groups = zip(state["param_groups"], optimizer.param_groups, strict=False)  # torch itself compares their number
    own = [saved | {way: group[way] for way in _WAYS if way in group} for saved, group in groups]
    return {**state, "param_groups": [*own, *state["param_groups"][len(own) :]]}


def clip_gradients(parameters: Iterable[torch.nn.Parameter], limit: float | None) -> torch.Tensor:
    r"""Scale gradients down to a 2-norm of at most ``limit``, as torch does, and return the norm that they had.

    .. math:: g \leftarrow g \min(1, limit / (|g| + 10^{-6}))

    A GPU is not asked for the norm: gradients that need no scaling are multiplied by one.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if limit is not None:
        factor = limit / (norm + _ADDED_TO_NORM)
        if factor.is_cuda or factor < 1:
            torch._foreach_mul_(gradients, factor.clamp(max=1))
    return norm


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all of a step is in the optimiser's own kernels."""
    return all(group.get("fused") for group in optimizer.param_groups)


@contextmanager
def with_rates(optimizer: torch.optim.Optimizer, rates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within the context the learning rates of the groups are tensors (), which a captured step reads in each replay.

    Outside they are numbers, as schedules and checkpoints want them.
    """
    is_captured = rates[0].is_cuda and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    before = [{name: group[name] for name in ("lr", "capturable")} for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group |= {"lr": rate, "capturable": is_captured}
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group |= values


def take_step(optimizer: torch.optim.Optimizer, *, leave_out: torch.Tensor) -> None:
    """The optimiser's step, unless ``leave_out`` () bool: a fused optimiser on a GPU decides that there."""
    if leave_out.is_cuda and is_fused(optimizer):
        optimizer.grad_scale, optimizer.found_inf = None, leave_out.float()  # as torch's gradient scaler does
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif not leave_out:
        optimizer.step()


def divide_shared_gradients(model: torch.nn.Module) -> None:
    """Divide the gradients of parameters that a model uses several times, as GemNet's ``shared_parameters`` ask."""
    for parameter, factor in getattr(model, "shared_parameters", ()):
        if parameter.grad is not None:
            parameter.grad.detach().div_(factor)
