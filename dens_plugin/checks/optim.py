"""The ``optim`` block, looked at before anything is built.

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

from dens_plugin.checks.schema import OPTIM
from dens_plugin.settings import mapping, number, reject_unknown, require_one_of, switch

_NEEDED = ("num_workers", "lr_initial", "max_epochs", "scheduler", "scheduler_params")
_WHOLE = ("batch_size", "eval_batch_size", "max_epochs")
_FRACTIONS = ("lr_initial", "clip_grad_norm")
_LEAST = {
    "eval_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "accumulate_steps": 1,
    "max_bad_steps": 0,
    "num_workers": 0,
    "loader_workers": 0,
    "batch_atoms": 1,
    "batch_edges": 1,
}
# What fairchem's two learning-rate functions read, in epochs or as shares of optim.lr_initial.
_SCHEDULES = {
    "cosine": ("warmup_epochs", "warmup_factor", "lr_min_factor"),
    "held_cosine": ("warmup_epochs", "warmup_factor", "hold_epochs", "lr_min_factor"),
    "multistep": ("warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate"),
}
_ON_ERROR = ("raise", "warn_and_balance", "warn_and_no_balance")  # that a set does not say sizes of structures
_WARM_UP = ("warmup_epochs", "warmup_factor")  # of this package's ReduceLROnPlateau
_ROUNDING = 1e-6  # epochs
_OF_FAIRCHEM = ("epochs", "lr")  # it writes both into scheduler_params, also into those of a checkpoint


def without_nulls(optim: Mapping[str, Any]) -> dict[str, Any]:
    """The settings less those that are null, which is how a config drops a key that an included one has."""
    return {
        key: without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in optim.items()
        if value is not None
    }


def require_optim(optim: Mapping[str, Any], *, amp: bool = False) -> None:
    """Raise ValueError for an invalid key, type, or option of optimiser or schedule in ``optim``.

    Args:
        optim: the block.
        amp: whether fairchem's ``--amp`` is set.
    """
    optim = without_nulls(mapping(optim, "optim"))
    reject_unknown(optim, OPTIM, "optim")
    for key in _NEEDED:
        if key not in optim:
            raise ValueError(f"optim lacks `{key}`; see the files in configs/schedule")
    require_numbers(optim)
    _require_steps(optim, amp=amp)
    _require_loaders(optim)
    optimizer = _tried_optimizer(optim)
    name, options = optim["scheduler"], mapping(optim["scheduler_params"], "optim.scheduler_params")
    if name == "LambdaLR":
        _require_schedule(options)
        _require_fall(options, optim["max_epochs"])
    elif name != "Null":
        _try_scheduler(getattr(lr_scheduler, name), optimizer, options, optim)


def require_numbers(optim: Mapping[str, Any], *, is_text_read: bool = True) -> None:
    """Raise ValueError for an impossible number in ``optim``, for every trainer.

    Args:
        optim: the block.
        is_text_read: whether the trainer takes ``'0.001'`` and YAML's ``1e-3`` for numbers, which fairchem's do not.
    """
    for key in (*_FRACTIONS, "ema_decay"):
        if isinstance(optim.get(key), str) and not is_text_read:
            raise ValueError(
                f"optim.{key} must be a number, got the text {optim[key]!r}; write it without quotes (1e-3 as 1.0e-3)"
            )
    for key in (*_WHOLE, *_FRACTIONS):
        value = optim.get(key)
        if value is not None and not (number(value, f"optim.{key}") > 0 and (key in _FRACTIONS or _is_whole(value))):
            kind = "number" if key in _FRACTIONS else "whole number"
            raise ValueError(f"optim.{key} must be a {kind} above 0, got {value!r}")
    if optim.get("lr_initial") is not None and math.isinf(number(optim["lr_initial"], "optim.lr_initial")):
        raise ValueError(f"optim.lr_initial must be a finite number above 0, got {optim['lr_initial']!r}")
    for key, least in _LEAST.items():
        value = optim.get(key)
        is_never = key == "checkpoint_every" and value == -1
        if value is not None and not is_never and not (_is_whole(value) and value >= least):
            raise ValueError(f"optim.{key} must be a whole number of at least {least}, got {value!r}")
    decay = optim.get("ema_decay")
    if decay is not None and decay is not False and not 0 <= number(decay, "optim.ema_decay") < 1:
        raise ValueError(f"optim.ema_decay must be between 0 and 1, got {decay!r}")
    if switch(optim.get("ema_warmup", False), "optim.ema_warmup") and not decay:
        raise ValueError("optim.ema_warmup: true needs optim.ema_decay, which is missing; set it, or drop ema_warmup")


def _require_steps(optim: Mapping[str, Any], *, amp: bool) -> None:
    """Look at precision and accumulation; checkpoints are at the end of a step, so that no gradient is lost."""
    if "autocast" in optim and optim["autocast"] != "bf16":
        raise ValueError(
            f"optim.autocast must be 'bf16' or left out, got {optim['autocast']!r}; fp16 is fairchem's --amp"
        )
    if "autocast" in optim and amp:
        raise ValueError("optim.autocast: bf16 and --amp (fp16) exclude each other; drop one of them")
    steps = optim.get("accumulate_steps", 1)
    for key in ("eval_every", "checkpoint_every"):
        every = optim.get(key, steps)
        if every > 0 and every % steps:
            raise ValueError(f"optim.{key} = {every} must be a multiple of optim.accumulate_steps = {steps}")


def _require_loaders(optim: Mapping[str, Any]) -> None:
    """Look at how batches are made: by one rule, and with ghosts only where neighbours are known."""
    fill = next((key for key in ("batch_atoms", "batch_edges") if key in optim), None)
    for other in ("batch_size", "load_balancing"):
        if fill is not None and other in optim:
            raise ValueError(
                f"optim.{fill} fills batches up, and optim.{other} asks for so many structures or equal shares of "
                f"them; drop one of them (`{other}: null` drops that of an included file)"
            )
    if fill is None and optim.get("batch_size") is None:
        raise ValueError("optim lacks `batch_size`; set it, or `batch_atoms` or `batch_edges` to fill batches up")
    if fill is not None and "eval_batch_size" not in optim:
        raise ValueError(f"optim.{fill} is for training; set optim.eval_batch_size, the structures of other batches")
    balance = optim.get("load_balancing", False)
    if balance is not False and str(balance).lower() != "atoms":
        raise ValueError(f"optim.load_balancing must be atoms or false, got {balance!r}")
    if optim.get("load_balancing_on_error") is not None:
        require_one_of(optim["load_balancing_on_error"], _ON_ERROR, "optim.load_balancing_on_error")
    pads = switch(optim.get("pad", False), "optim.pad")
    finds = switch(optim.get("loader_graph", True), "optim.loader_graph")
    if pads and not finds:
        raise ValueError("optim.pad: true needs the neighbours that loaders find; leave out optim.loader_graph: false")
    if switch(optim.get("cuda_graph", False), "optim.cuda_graph") and not (finds and optim.get("pad", True)):
        raise ValueError(
            "optim.cuda_graph: true needs padded batches and the neighbours that loaders find; leave out optim.pad: "
            "false and optim.loader_graph: false"
        )


def _is_whole(value: Any) -> bool:
    """Whether a setting is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _tried_optimizer(optim: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser on a parameter of no importance: torch itself looks at its options."""
    cls = getattr(torch.optim, optim.get("optimizer", "AdamW"))
    options = mapping(optim.get("optimizer_params") or {}, "optim.optimizer_params")
    reject_unknown(options, _arguments(cls) - {"params", "lr"}, "optim.optimizer_params")
    if "weight_decay" in options:
        options["weight_decay"] = finite(options["weight_decay"], "optim.optimizer_params.weight_decay")
    if optim.get("weight_decay") is not None:
        finite(optim["weight_decay"], "optim.weight_decay")
    try:
        return cls([torch.nn.Parameter(torch.zeros(1))], lr=number(optim["lr_initial"], "optim.lr_initial"), **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"optim.optimizer_params do not suit {cls.__name__}: {error}") from error


def _require_schedule(options: Mapping[str, Any]) -> None:
    """Look at the options of fairchem's own learning-rate functions."""
    kind, where = str(options.get("lambda_type")), "optim.scheduler_params"
    require_one_of(kind, _SCHEDULES, f"{where}.lambda_type")
    names = _SCHEDULES[kind]
    reject_unknown(options, (*names, "lambda_type", "lr_lambda", *_OF_FAIRCHEM), where)
    for name in names:
        if name not in options:
            raise ValueError(f"{where} lacks `{name}`, which lambda_type '{kind}' needs")
        values = options[name]
        if (name == "decay_epochs") != isinstance(values, list):
            raise ValueError(
                f"{where}.{name} must be a {'list' if name == 'decay_epochs' else 'number'}, got {values!r}"
            )
        for value in values if isinstance(values, list) else [values]:
            finite(value, f"{where}.{name}")


def _require_fall(options: Mapping[str, Any], max_epochs: float) -> None:
    """Raise ValueError for a ``held_cosine`` of which the run never sees the cosine."""
    if str(options["lambda_type"]) != "held_cosine":
        return
    length = number(options.get("epochs", max_epochs), "optim.max_epochs")  # a checkpoint's are in steps, as is all
    warmup, hold = (number(options[name], name) for name in ("warmup_epochs", "hold_epochs"))
    if warmup + hold > length + _ROUNDING:
        raise ValueError(
            f"optim.scheduler_params.hold_epochs = {hold:g} after warmup_epochs = {warmup:g} is longer than the run "
            f"(optim.max_epochs = {length:g}), so that the learning rate never falls: shorten them or raise max_epochs"
        )


def _try_scheduler(
    cls: type, optimizer: torch.optim.Optimizer, options: Mapping[str, Any], optim: Mapping[str, Any]
) -> None:
    """Make one of torch's schedules, with the options that fairchem would pass on."""
    accepted, own = _arguments(cls) - {"optimizer"}, set(_WARM_UP) if cls is lr_scheduler.ReduceLROnPlateau else set()
    reject_unknown(options, accepted | own | set(_OF_FAIRCHEM), "optim.scheduler_params")
    for name in own & options.keys():
        finite(options[name], f"optim.scheduler_params.{name}")
    values = {"epochs": optim["max_epochs"], **options}
    try:
        cls(optimizer, **{name: values[name] for name in values if name in accepted})
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise ValueError(f"optim.scheduler_params do not suit {cls.__name__}: {error}") from error


def finite(value: Any, where: str, *, least: float = 0.0) -> float:
    """A number that is neither infinite nor NaN nor below the least; ValueError for others."""
    found = number(value, where)
    if not (math.isfinite(found) and found >= least):
        raise ValueError(
            f"{where} must be a finite number{f' of at least {least:g}' if least == 0 else ''}, got {value!r}"
        )
    return found


def _arguments(cls: type) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in inspect.signature(cls).parameters.items() if parameter.kind in kinds}
