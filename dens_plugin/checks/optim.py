"""The ``optim`` block and the normalisers of our trainers, looked at before anything is built.

fairchem passes ``optimizer_params`` on to torch as they are, leaves out unknown ``scheduler_params`` without a word,
and meets a wrong type with a traceback after it has built the model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

from dens_plugin.settings import mapping, number, reject_unknown, suggestion

OPTIM_KEYS = """
    autocast accumulate_steps max_bad_steps keep_checkpoints batch_size eval_batch_size num_workers loader_workers
    loader_graph checkpoint_every eval_every clip_grad_norm
    ema_decay load_balancing load_balancing_on_error load_datasets_and_model_then_exit lr_initial max_epochs optimizer
    optimizer_params scheduler scheduler_params weight_decay loss_energy loss_force loss_forces energy_coefficient
    force_coefficient use_denoising_pos denoising_pos_params denoising_pos_coefficient
""".split()  # noqa: SIM905  (a list of thirty literals would fill the page)

_NEEDED = ("num_workers", "lr_initial", "max_epochs", "scheduler", "scheduler_params")
# What fairchem's two learning-rate functions read, in epochs or as shares of optim.lr_initial.
_SCHEDULES = {
    "cosine": ("warmup_epochs", "warmup_factor", "lr_min_factor"),
    "multistep": ("warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate"),
}
_OF_THE_HOST = ("epochs", "lr")  # it writes both into scheduler_params, also into those of a checkpoint
_NORMALIZER_KEYS = ("mean", "rmsd", "stdev", "file")
_FOR_ALL_TARGETS = ("file", "fit")  # keys of ``normalizer`` that are no target's


def require_optim(optim: Mapping[str, Any]) -> None:
    """Raise ValueError for a key, an option of optimiser or schedule, or a type in ``optim`` that cannot be meant."""
    reject_unknown(optim, OPTIM_KEYS, "optim")
    missing = [key for key in _NEEDED if optim.get(key) is None]
    if missing:
        raise ValueError(f"optim lacks `{missing[0]}`; see the files in configs/schedule")
    optimizer = _tried_optimizer(optim)
    name, options = optim["scheduler"], mapping(optim["scheduler_params"], "optim.scheduler_params")
    if name == "LambdaLR":
        _require_schedule(options)
    elif name != "Null":
        _try_scheduler(getattr(lr_scheduler, name), optimizer, options, optim)


def require_normalizers(transforms: Any, where: str) -> None:
    """Raise ValueError for a ``normalizer`` among the ``transforms`` of a data set that cannot be meant."""
    block = mapping(mapping(transforms or {}, where).get("normalizer") or {}, f"{where}.normalizer")
    for target in block.keys() - set(_FOR_ALL_TARGETS):
        key = f"{where}.normalizer.{target}"
        values = mapping(block[target], key)
        reject_unknown(values, _NORMALIZER_KEYS, key)
        numbers = sorted(values.keys() - {"file"})
        if values.get("file") is not None and any(values[name] is not None for name in numbers):
            raise ValueError(
                f"{key} has both a file and {', '.join(numbers)}, perhaps of an included config, and fairchem would "
                "take the file alone: set one of them to null"
            )
        for name in numbers:
            if values[name] is None:
                continue
            _finite(values[name], f"{key}.{name}", least=-math.inf)


def _tried_optimizer(optim: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser on a parameter of no importance: torch itself looks at its options."""
    cls = getattr(torch.optim, optim.get("optimizer", "AdamW"))
    options = mapping(optim.get("optimizer_params") or {}, "optim.optimizer_params")
    reject_unknown(options, _arguments(cls) - {"params", "lr"}, "optim.optimizer_params")
    if "weight_decay" in options:
        options["weight_decay"] = _finite(options["weight_decay"], "optim.optimizer_params.weight_decay")
    if optim.get("weight_decay") is not None:
        _finite(optim["weight_decay"], "optim.weight_decay")
    try:
        return cls([torch.nn.Parameter(torch.zeros(1))], lr=number(optim["lr_initial"], "optim.lr_initial"), **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"optim.optimizer_params do not suit {cls.__name__}: {error}") from error


def _require_schedule(options: Mapping[str, Any]) -> None:
    """Look at the options of fairchem's own learning-rate functions."""
    kind, where = options.get("lambda_type"), "optim.scheduler_params"
    if kind not in _SCHEDULES:
        raise ValueError(f"unknown {where}.lambda_type '{kind}'; {suggestion(str(kind), _SCHEDULES)}")
    names = _SCHEDULES[kind]
    reject_unknown(options, (*names, "lambda_type", "lr_lambda", *_OF_THE_HOST), where)
    for name in names:
        if name not in options:
            raise ValueError(f"{where} lacks `{name}`, which lambda_type '{kind}' needs")
        values = options[name]
        if (name == "decay_epochs") != isinstance(values, list):
            raise ValueError(
                f"{where}.{name} must be a {'list' if name == 'decay_epochs' else 'number'}, got {values!r}"
            )
        for value in values if isinstance(values, list) else [values]:
            _finite(value, f"{where}.{name}")


def _try_scheduler(
    cls: type, optimizer: torch.optim.Optimizer, options: Mapping[str, Any], optim: Mapping[str, Any]
) -> None:
    """Make one of torch's schedules, with the options that fairchem would pass on."""
    accepted = _arguments(cls) - {"optimizer"}
    reject_unknown(options, accepted | set(_OF_THE_HOST), "optim.scheduler_params")
    values = {"epochs": optim["max_epochs"], **options}
    try:
        cls(optimizer, **{name: values[name] for name in values if name in accepted})
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise ValueError(f"optim.scheduler_params do not suit {cls.__name__}: {error}") from error


def _finite(value: Any, where: str, *, least: float = 0.0) -> float:
    found = number(value, where)
    if not (math.isfinite(found) and found >= least):
        raise ValueError(
            f"{where} must be a finite number{f' of at least {least:g}' if least == 0 else ''}, got {value!r}"
        )
    return found


def _arguments(cls: type) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in inspect.signature(cls).parameters.items() if parameter.kind in kinds}
