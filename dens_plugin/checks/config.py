"""A config's names and numbers, looked at before anything is built.

fairchem meets most mistakes with a traceback, and misspelt keys not at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch.optim import lr_scheduler

from dens_plugin.checks.optim import OPTIM_KEYS
from dens_plugin.settings import mapping, number, suggestion

_TOP = """
    trainer dataset model task optim outputs loss_functions evaluation_metrics logger slurm includes mode identifier
    timestamp_id seed is_debug run_dir print_every amp checkpoint cpu submit summit world_size distributed_backend
    gp_gpus name note noddp hide_eval_progressbar skip_experimental_imports gpus local_rank
""".split()  # noqa: SIM905  (a list of forty literals would fill the page)
_TASK = """
    objective warm_start predict_fixed_atoms prediction_dtype dataset eval_relaxations num_relaxation_batches relax
    relax_cell relax_volume relaxation_fmax relaxation_steps relax_opt relax_dataset save_full_traj
    set_deterministic_scatter strict_load write_pos primary_metric train_on_free_atoms eval_on_free_atoms description
    type metric labels grad_input
""".split()  # noqa: SIM905
_KNOWN = {"the config": _TOP, "task": _TASK, "optim": OPTIM_KEYS}
_WHOLE = ("batch_size", "eval_batch_size", "max_epochs")
_ALIKE = 0.8  # of 1: how near a name must be to a known one to be taken for a slip


def require_meant(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a slip in a key, an unknown class, or a number that cannot be meant.

    Keys that resemble none of the known ones pass, since fairchem's blocks are open to other code.
    """
    optim = mapping(config["optim"], "optim")
    for where, keys in (("the config", config), ("task", config.get("task") or {}), ("optim", optim)):
        _refuse_slips(keys, _KNOWN[where], where)
    for key in ("identifier", "timestamp_id"):
        require_name(config.get(key) or "", key)
    _require_registered(config)
    _require_classes(optim)
    for key in _WHOLE:
        if key in optim:
            _require_positive(optim[key], f"optim.{key}", whole=True)
    _require_positive(optim.get("lr_initial"), "optim.lr_initial", whole=False)
    if optim.get("clip_grad_norm") is not None:
        _require_positive(optim["clip_grad_norm"], "optim.clip_grad_norm", whole=False)
    for key, lowest in (("eval_every", 1), ("checkpoint_every", 1), ("num_workers", 0)):
        value = optim.get(key, lowest)
        is_never = key == "checkpoint_every" and value == -1
        if not is_never and (not isinstance(value, int) or isinstance(value, bool) or value < lowest):
            raise ValueError(f"optim.{key} must be a whole number of at least {lowest}, got {value!r}")
    if optim.get("ema_decay") and not 0 < number(optim["ema_decay"], "optim.ema_decay") < 1:
        raise ValueError(f"optim.ema_decay must be between 0 and 1, got {optim['ema_decay']!r}")


def require_name(name: Any, where: str) -> None:
    """Raise ValueError for a name of a run that cannot be part of the name of a folder and of a line of a log."""
    if "/" in str(name) or not str(name).isprintable():
        raise ValueError(f"{where} {name!r} names folders: leave out slashes, line breaks and other control characters")


def _refuse_slips(keys: Iterable[str], known: list[str], where: str) -> None:
    for key in keys:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=_ALIKE)
        if key not in known and near:
            raise ValueError(f"unknown key '{key}' in {where}; did you mean '{near[0]}'?")


def _require_registered(config: Mapping[str, Any]) -> None:
    _look_up(registry.get_trainer_class, config.get("trainer", "ocp"), "trainer")
    logger = config.get("logger", "wandb")
    _look_up(registry.get_logger_class, logger["name"] if isinstance(logger, Mapping) else logger, "logger")
    datasets = config["dataset"] if isinstance(config["dataset"], Mapping) else {}
    for split, dataset in datasets.items():
        if isinstance(dataset, Mapping) and "format" in dataset:
            _look_up(registry.get_dataset_class, dataset["format"], f"dataset.{split}.format")


def _look_up(find: Callable[[str], type], name: Any, key: str) -> None:
    kind = key.rpartition(".")[2].replace("format", "dataset")
    try:
        find(str(name))
    except RuntimeError as error:
        known = registry.mapping[f"{kind}_name_mapping"]
        raise ValueError(f"unknown {key} '{name}'; {suggestion(str(name), known)}") from error


def _require_classes(optim: Mapping[str, Any]) -> None:
    for key, module, extra in (("optimizer", torch.optim, ()), ("scheduler", lr_scheduler, ("Null",))):
        offered = {*extra, *(name for name, value in vars(module).items() if isinstance(value, type))}
        if key in optim and optim[key] not in offered:
            raise ValueError(f"unknown optim.{key} '{optim[key]}'; {suggestion(str(optim[key]), offered)}")


def _require_positive(value: Any, key: str, *, whole: bool) -> None:
    if not number(value, key) > 0 or (whole and not isinstance(value, int)):
        raise ValueError(f"{key} must be a {'whole ' if whole else ''}number above 0, got {value!r}")
