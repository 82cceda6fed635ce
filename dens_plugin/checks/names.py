"""Names in a config that stand for something else: a class of fairchem's or torch's, a metric, an output."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
import wandb
from fairchem.core.common.registry import registry
from fairchem.core.modules import evaluator
from fairchem.core.trainers import BaseTrainer
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import Dataset

from dens_plugin.checks.optim import finite
from dens_plugin.settings import mapping, require_one_of, suggestion

_LEVELS = ("system", "atom")
_REDUCTIONS = ("mean", "sum")
_SWITCHES = {"train_on_free_atoms", "eval_on_free_atoms"}
# What a name of each kind stands for, and what people call it.
_BASES: dict[str, tuple[type, str]] = {
    "trainer": (BaseTrainer, "trainer"),
    "logger": (object, "logger"),
    "dataset": (Dataset, "data set"),
    "loss": (nn.Module, "loss"),
}
_OLD_LOSSES = {"loss_energy", "loss_force", "loss_forces"}  # of ``optim``, in configs of before 2.0
_EXAMPLE = "a list with a block for each output, as `- energy: {fn: mae, coefficient: 2}`"


def require_known_names(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a trainer, logger, format, optimiser, schedule, loss or metric that does not exist.

    fairchem's registry must be set up (`setup_imports`).
    """
    for key in ("identifier", "timestamp_id"):
        require_name(config.get(key) or "", key)
    _look_up("trainer", config.get("trainer", "ocp"), "trainer")
    logger = config.get("logger", "wandb")
    _look_up("logger", logger.get("name") if isinstance(logger, Mapping) else logger, "logger")
    datasets = config["dataset"] if isinstance(config["dataset"], Mapping) else {}
    for split, dataset in datasets.items():
        if isinstance(dataset, Mapping) and "format" in dataset:
            _look_up("dataset", dataset["format"], f"dataset.{split}.format")
    _require_classes(mapping(config["optim"], "optim"))
    outputs = _require_outputs(config.get("outputs", {}))
    _require_losses(config.get("loss_functions", []), outputs)
    if not (config.get("loss_functions") or config.get("loss_fns") or _OLD_LOSSES & set(config["optim"])):
        raise ValueError(f"loss_functions is empty: give it {_EXAMPLE}")
    _require_metrics(mapping(config.get("evaluation_metrics", {}), "evaluation_metrics"), outputs)


def require_name(name: Any, where: str) -> None:
    """Raise ValueError for a name of a run that cannot be part of the name of a folder and of a line of a log."""
    if "/" in str(name) or not str(name).isprintable():
        raise ValueError(f"{where} {name!r} names folders: leave out slashes, line breaks and other control characters")


def require_login(config: Mapping[str, Any]) -> None:
    """Raise ValueError if the logger is Weights & Biases and nobody has logged in, which it would ask for or refuse."""
    logger = config.get("logger", "wandb")
    name = logger.get("name") if isinstance(logger, Mapping) else logger
    is_online = os.environ.get("WANDB_MODE", "online") == "online" and not os.environ.get("WANDB_DISABLED")
    if config.get("is_debug") or not str(name).startswith("wandb") or not is_online:
        return
    if wandb.api.api_key is None:
        default = "" if "logger" in config else ", as it is where a config says nothing"
        raise ValueError(
            f"the logger is wandb{default}, and there is no key for it: run `wandb login`, set WANDB_API_KEY or "
            "WANDB_MODE=offline, or write `logger: tensorboard`"
        )


def _look_up(kind: str, name: Any, key: str) -> None:
    """Raise ValueError for a name that is not in fairchem's registry of trainers, loggers, data sets or losses."""
    base, word = _BASES[kind]
    try:
        found = getattr(registry, f"get_{kind}_class")(str(name))
    except RuntimeError as error:
        known = registry.mapping[f"{kind}_name_mapping"]
        raise ValueError(f"unknown {key} '{name}'; {suggestion(str(name), known)}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"'{name}' in {key} is no {word}: give its name in fairchem, or the dotted path of a class")


def _require_classes(optim: Mapping[str, Any]) -> None:
    optimizers = _subclasses(torch.optim, torch.optim.Optimizer)
    schedulers = {*_subclasses(lr_scheduler, lr_scheduler.LRScheduler), "Null"}
    for key, offered in (("optimizer", optimizers), ("scheduler", schedulers)):
        if optim.get(key) is not None:
            require_one_of(optim[key], offered, f"optim.{key}")


def _subclasses(module: ModuleType, base: type) -> set[str]:
    classes = inspect.getmembers(module, inspect.isclass)
    return {name for name, value in classes if issubclass(value, base) and value is not base and name[0] != "_"}


def _require_outputs(block: Any) -> set[str]:
    """Names of all outputs, those that others are composed of among them."""
    names = set()
    for name, settings in mapping(block, "outputs").items():
        output = mapping(settings, f"outputs.{name}")
        parts = mapping(output.get("decomposition") or {}, f"outputs.{name}.decomposition")
        for part, where in ((output, f"outputs.{name}"), *((parts[key], f"outputs.{name}.{key}") for key in parts)):
            stated = mapping(part, where)
            if part is output and "level" not in output:
                raise ValueError(f"{where} lacks `level`, which is system or atom")
            require_one_of(stated.get("level", "system"), _LEVELS, f"{where}.level")
            for key in _SWITCHES & stated.keys():
                if not isinstance(stated[key], bool):
                    raise ValueError(f"{where}.{key} must be true or false (without quotes), got {stated[key]!r}")
        names |= {str(name), *map(str, parts)}
    return names


def _require_losses(losses: Any, outputs: set[str]) -> None:
    if not isinstance(losses, list):
        raise ValueError(f"loss_functions must be {_EXAMPLE}; got {_shown(losses)}")
    for loss in losses:
        for target, block in mapping(loss, "an entry of loss_functions").items():
            where = f"loss_functions.{target}"
            _require_target(target, outputs, "loss_functions")
            settings = mapping(block, where)
            for key in ("fn", "coefficient"):
                if settings.get(key) is None:
                    raise ValueError(f"{where} lacks `{key}`, as in `- energy: {{fn: mae, coefficient: 2}}`")
            _look_up("loss", settings["fn"], f"{where}.fn")
            finite(settings["coefficient"], f"{where}.coefficient")
            require_one_of(settings.get("reduction") or "mean", _REDUCTIONS, f"{where}.reduction")


def _require_metrics(settings: Mapping[str, Any], outputs: set[str]) -> None:
    primary = settings.get("primary_metric", "forces_mae")
    if not isinstance(primary, str):
        raise ValueError(f"evaluation_metrics.primary_metric must be a name, as forces_mae, got {_shown(primary)}")
    metrics = mapping(settings.get("metrics", {}), "evaluation_metrics.metrics")
    known = _metrics()
    for target, names in metrics.items():
        where = f"evaluation_metrics.metrics.{target}"
        _require_target(target, {*outputs, "misc"}, "evaluation_metrics.metrics")
        if not isinstance(names, list):
            raise ValueError(f"{where} must be a list of metrics, as [mae], got {_shown(names)}")
        for name in names:
            require_one_of(name, known, f"metric of {where}")


def _require_target(name: Any, outputs: Iterable[str], where: str) -> None:
    outputs = list(outputs)
    if outputs and str(name) not in outputs:
        raise ValueError(f"{where} has '{name}', which is not among the `outputs`; {suggestion(str(name), outputs)}")


def _metrics() -> set[str]:
    """Names of fairchem's metrics: its functions of a prediction and a target."""
    functions = inspect.getmembers(evaluator, inspect.isfunction)
    return {name for name, function in functions if next(iter(inspect.signature(function).parameters)) == "prediction"}


def _shown(value: Any) -> str:
    return repr(value)[:60]
