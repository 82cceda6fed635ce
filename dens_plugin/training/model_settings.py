"""Names in a config's ``model`` block, looked up before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel

from dens_plugin.settings import mapping, reject_unknown, suggestion
from dens_plugin.training.config import without_switches


def require_known_model(model: Any) -> None:
    """Raise ValueError for a model, backbone, head or hyper-parameter that does not exist.

    The host's registry must be set up (`setup_imports`).
    """
    settings = without_switches(mapping(model, "model"))
    cls = _model_class(settings.pop("name", None), "model.name")
    _require_accepted(cls, settings, "model")
    if cls is HydraModel:
        _require_part(settings.get("backbone") or {}, "model", "model.backbone")
        for name, head in (settings.get("heads") or {}).items():
            _require_part(head, "module", f"model.heads.{name}")


def _require_part(block: Any, key: str, where: str) -> None:
    settings = mapping(block, where)
    if settings:  # a fine-tuned hydra may take its parts from a checkpoint
        cls = _model_class(settings.pop(key, None), f"{where}.{key}")
        _require_accepted(cls, settings, where)


def _model_class(name: Any, where: str) -> type:
    try:
        return registry.get_model_class(str(name))
    except RuntimeError as error:
        known = registry.mapping["model_name_mapping"]
        hint = str(error) if "." in str(name) else suggestion(str(name), known)
        raise ValueError(f"unknown model '{name}' in {where}; {hint}") from error


def _require_accepted(cls: type, settings: Mapping[str, Any], where: str) -> None:
    """Names of the constructor's arguments, its base classes' where it passes the rest on to them."""
    owners = [*cls.__mro__, *getattr(cls, "backbone_class", object).__mro__]
    constructors = [owner.__init__ for owner in owners if "__init__" in vars(owner)]
    accepted = {name for constructor in constructors for name in _arguments(constructor)}
    reject_unknown(settings, accepted, where)


def _arguments(constructor: Any) -> list[str]:
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except ValueError:  # a constructor in C
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in named and parameter.name != "self"]
