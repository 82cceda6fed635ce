"""An optimiser's state from a run that put its parameters into other groups.

The state knows parameters by number: those that weight decay spares first, then the others; all in one group where
nothing decays. Which ones are spared was another rule in earlier versions (fairchem's, for models of backbone and
heads), and weight decay may have been turned on or off since.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from fairchem.core.models.base import GraphModelMixin
from torch import nn

from dens_plugin.backbones.description import describe

State = Mapping[str, Any]
_OF_GROUPS = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs")  # in a schedule's state, a number for each group


def regrouped(state: State, optimizer: torch.optim.Optimizer, model: nn.Module) -> State:
    """A state in the groups that an optimiser has now; as it is if it has these groups, or no known ones.

    Args:
        state: of ``state_dict()``.
        optimizer: of the same kind, of all parameters of ``model``.
        model: without DDP around it.
    """
    now = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if _fits(state, [now[sum(sizes[:at]) : sum(sizes[: at + 1])] for at in range(len(sizes))]):
        return state
    before = next((groups for groups in _possible_groups(model) if _fits(state, groups)), None)
    if before is None:
        return state
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    number_of = dict(zip(map(id, _flat(before)), numbers, strict=True))
    if not number_of.keys() >= set(map(id, now)):
        return state
    logging.info(
        "The optimiser's state was saved with other groups of parameters: its moments are kept, and weight decay is "
        "from now on that of this version and config."
    )
    moments = {
        at: state["state"][number_of[id(value)]] for at, value in enumerate(now) if _has(state, number_of, value)
    }
    return {**state, "state": moments, "param_groups": _groups(state["param_groups"], optimizer, sizes)}


def for_groups(schedule: State | None, groups: int) -> State | None:
    """The state of a schedule of torch's for another number of groups, whose learning rates are all the same."""
    if schedule is None:
        return None
    lists = {name: schedule[name] for name in _OF_GROUPS if isinstance(schedule.get(name), list) and schedule[name]}
    return {
        **schedule,
        **{name: [values[min(at, len(values) - 1)] for at in range(groups)] for name, values in lists.items()},
    }


def _has(state: State, number_of: Mapping[int, int], parameter: torch.Tensor) -> bool:
    return number_of[id(parameter)] in state["state"]


def _groups(saved: list[dict[str, Any]], optimizer: torch.optim.Optimizer, sizes: list[int]) -> list[dict[str, Any]]:
    """Groups of these sizes, numbered in order, with the saved settings but for weight decay."""
    groups, first = [], 0
    for at, (own, size) in enumerate(zip(optimizer.param_groups, sizes, strict=True)):
        settings = saved[min(at, len(saved) - 1)]
        groups.append({**settings, "weight_decay": own["weight_decay"], "params": [*range(first, first + size)]})
        first += size
    return groups


def _possible_groups(model: nn.Module) -> Iterator[list[list[torch.Tensor]]]:
    """The parameters in each way in which an optimiser of this package or of fairchem has had them."""
    yield [[*model.parameters()]]
    family = describe(model).family
    rules = [GraphModelMixin.no_weight_decay, None if family is None else family.undecayed]
    rules.append(getattr(type(model), "no_weight_decay", None))
    for rule in filter(None, rules):
        yield _by_decay(model, rule(model))


def _by_decay(model: nn.Module, spared: Collection[str]) -> list[list[torch.Tensor]]:
    """Those that are spared and the others, as fairchem's trainer tells them apart."""
    groups: list[list[torch.Tensor]] = [[], []]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0 if name.endswith(tuple(spared)) else 1].append(parameter)
    return groups


def _fits(state: State, groups: list[list[torch.Tensor]]) -> bool:
    """Whether a state's groups have these numbers of parameters, and its moments their shapes."""
    saved = state["param_groups"]
    if [len(group["params"]) for group in saved] != [len(group) for group in groups]:
        return False
    numbers = [number for group in saved for number in group["params"]]
    return all(
        moment.shape == parameter.shape
        for number, parameter in zip(numbers, _flat(groups), strict=True)
        for moment in state["state"].get(number, {}).values()
        if torch.is_tensor(moment) and moment.dim() > 0
    )


def _flat(groups: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [parameter for group in groups for parameter in group]
