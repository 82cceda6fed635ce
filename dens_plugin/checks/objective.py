"""From a fairchem config to an objective: our block ``task.objective``, or the authors' keys under ``optim``.

Both say the same. The authors' layout also puts two ablation switches among the model's hyper-parameters; they are
settings of the method, and `without_switches` takes them out before the model is built.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal

import dens_plugin.objectives
from dens_plugin.checks.optim import without_nulls
from dens_plugin.fields import ENERGY, FORCES, Output
from dens_plugin.objectives.base import Objective
from dens_plugin.settings import SETTING, mapping, reject_unknown, suggestion

_MODEL_SWITCHES = {"use_force_encoding": "encode_forces", "use_denoising_energy": "energy_of_corrupted"}
_AUTHORS_KEYS = {"prob", "fixed_noise_std", "std", "num_steps", "std_low", "std_high", "corrupt_ratio", "all_atoms"}


def objective_from_config(config: Mapping[str, Any]) -> Objective:
    """The objective that a config asks for.

    Args:
        config: with ``task``, ``optim``, ``model`` and ``outputs``, as fairchem's trainer keeps it.

    Raises:
        ValueError: for no objective, two of them, an unknown one or an impossible setting, naming the key.
    """
    task, optim = mapping(config.get("task") or {}, "task"), without_nulls(config.get("optim") or {})
    ours, authors = "objective" in task, "use_denoising_pos" in optim
    if ours and authors:
        raise ValueError("both task.objective and optim.use_denoising_pos are set; keep one of them")
    if not ours and not authors:
        raise ValueError(
            "this trainer needs an objective: add `task: {objective: {name: dens}}`, or `{name: s2ef}` to train "
            "without DeNS"
        )
    block = mapping(task["objective"], "task.objective") if ours else _from_authors(optim, config["model"])
    name = block.pop("name", None)
    _require_one_loss_each(config.get("loss_functions") or [])
    try:
        cls = objective_class(name)
        block = _settings_of(cls, block, str(name))
        return cls.from_settings(block, labels=labels_of(config), free_only=_free_only(config))
    except ValueError as error:
        where = "task.objective" if ours else "optim.denoising_pos_params"
        raise ValueError(str(error) if "task.objective" in str(error) else f"{where}: {error}") from error


def objective_class(name: Any) -> type[Objective]:
    """The objective of a short name (its file in ``dens_plugin/objectives``) or of a dotted path to a class."""
    if isinstance(name, str) and "." in name:
        return _imported(name)
    known = _shipped()
    if name is None:
        raise ValueError(f"task.objective lacks `name`; {suggestion('', known)}, or a dotted path to a class")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown objective '{name}' in task.objective.name; {suggestion(str(name), known)}")
    return known[name]


def _imported(name: str) -> type[Objective]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two for a name that is no path
        raise ValueError(f"task.objective.name '{name}' cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError(
            f"task.objective.name '{name}' is no objective: name a subclass of dens_plugin.objectives.base.Objective"
        )
    return found


def _settings_of(cls: type[Objective], block: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A block less the nulls of keys that an objective lacks: a config drops so what an included one has."""
    known = {entry.name for entry in fields(cls) if entry.metadata.get(SETTING, True)}
    given = {key: value for key, value in block.items() if value is not None or key in known}
    if given and not known:
        key = next(iter(given))
        raise ValueError(
            f"unknown key '{key}' in task.objective: {name} has no settings; take '{key}' out, or set it to null "
            "where an included config has it"
        )
    return given


def _require_one_loss_each(losses: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError for an output with two losses, of which this package's trainer would drop the first."""
    seen = set()
    for name in (name for loss in losses for name in loss):
        if name in seen:
            raise ValueError(f"loss_functions has two losses of '{name}': an output has one here, so take one out")
        seen.add(name)


def without_switches(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings without the authors' ablation switches, which the objective has taken over."""
    return {key: value for key, value in model.items() if key not in _MODEL_SWITCHES}


def _shipped() -> dict[str, type[Objective]]:
    """Name of the file -> the objective defined in it."""
    found = {}
    for entry in pkgutil.iter_modules(dens_plugin.objectives.__path__):
        module = importlib.import_module(f"dens_plugin.objectives.{entry.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            is_own = member.__module__ == module.__name__
            if is_own and issubclass(member, Objective) and not inspect.isabstract(member):
                found[entry.name] = member
    return found


def _from_authors(optim: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' ``optim.denoising_pos_params`` and friends in our words."""
    if not optim["use_denoising_pos"]:
        return {"name": "s2ef"}
    params = mapping(optim.get("denoising_pos_params"), "optim.denoising_pos_params")
    reject_unknown(params, _AUTHORS_KEYS, "optim.denoising_pos_params")
    if "prob" not in params:
        logging.warning("optim.denoising_pos_params has no `prob`; by the authors' default of 0 nothing is corrupted")
    block: dict[str, Any] = {"prob": 0, **{key: params[key] for key in ("prob", "all_atoms") if key in params}}
    block |= {ours: model[theirs] for theirs, ours in _MODEL_SWITCHES.items() if theirs in model}
    if "denoising_pos_coefficient" in optim:
        block["coefficient"] = optim["denoising_pos_coefficient"]
    # Their layout corrupts all atoms where the ratio is left out.
    return {"name": "dens", "corrupt_ratio": params.get("corrupt_ratio"), "sigma": _authors_sigma(params), **block}


def _authors_sigma(params: Mapping[str, Any]) -> Any:
    fixed = params.get("fixed_noise_std", True)
    needed = {"std": "std"} if fixed else {"low": "std_low", "high": "std_high", "levels": "num_steps"}
    missing = [key for key in needed.values() if key not in params]
    if missing:
        raise ValueError(f"optim.denoising_pos_params lacks {', '.join(missing)} (fixed_noise_std: {fixed})")
    if fixed:
        return params["std"]
    # Their target is the noise over std_high, whatever a structure's own level is.
    return {"normalise_by": "largest", **{ours: params[theirs] for ours, theirs in needed.items()}}


def labels_of(config: Mapping[str, Any]) -> tuple[Output, ...]:
    """What the config trains on by labels: the names under ``loss_functions``, with their level under ``outputs``."""
    outputs = dict(config.get("outputs") or {})
    for settings in filter(None, list(outputs.values())):
        parts = settings.get("decomposition") or {}
        outputs |= {part: {"level": settings.get("level", "system"), **parts[part]} for part in parts}
    losses = {name: info for loss in config.get("loss_functions") or [] for name, info in loss.items()}
    return tuple(_label(name, outputs.get(name) or {}, losses[name]) for name in losses)


def _label(name: str, output: Mapping[str, Any], loss: Mapping[str, Any]) -> Output:
    level: Literal["atom", "structure"] = "atom" if output.get("level") == "atom" else "structure"
    known = next((label for label in (ENERGY, FORCES) if label.name == name), None)
    if known is not None and known.level != level:
        words = {"atom": "atom", "structure": "system"}
        raise ValueError(
            f"outputs.{name}.level, which is {output.get('level', 'system')!r}, must be '{words[known.level]}'"
        )
    dim, unit = (known.dim, known.unit) if known else (output.get("irrep_dim", 0) * 2 + 1, "the data's")
    return Output(name, level, dim, unit, str(loss.get("fn", "mae")))


def _free_only(config: Mapping[str, Any]) -> bool:
    """Whether fixed atoms are left out of the loss; fairchem's own default is to leave them out."""
    return bool((config.get("outputs") or {}).get("forces", {}).get("train_on_free_atoms", True))
