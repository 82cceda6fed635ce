"""Names in a config's ``model`` block, looked up before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface, HydraModel
from torch import nn

import dens_plugin
from dens_plugin.checks.objective import without_switches
from dens_plugin.checks.sizes import require_sizes
from dens_plugin.settings import mapping, reject_unknown, require_one_of, suggestion

# Words that fairchem takes whatever they are, and reads nowhere: its EquiformerV2 has one activation.
_WORDS = dict.fromkeys(("attn_activation", "ffn_activation"), ("silu", "scaled_silu"))

# A default's type: what may stand there, and what to say where something else does.
_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a number", (int, float)),
    float: ("a number", (int, float)),
    str: ("a word", (str,)),
}
_HINTS: dict[tuple[type, type], str] = {
    (bool, str): "; write true or false without quotes",
    (float, str): "; YAML takes 1e-1 for text, and 1.0e-1 for a number",
}


def require_known_model(model: Any) -> None:
    """Raise ValueError for a model, backbone, head or hyper-parameter that does not exist.

    fairchem's registry must be set up (`setup_imports`).
    """
    settings = without_switches(mapping(model, "model"))
    cls = _model_class(settings.pop("name", None), "model.name")
    _requireaccepted_settings(cls, settings, "model")
    require_sizes(settings, accepted_settings(cls), "model")
    if cls is HydraModel:
        _require_part(settings.get("backbone") or {}, "model", "model.backbone")
        for name, head in mapping(settings.get("heads") or {}, "model.heads").items():
            _require_part(head, "module", f"model.heads.{name}")


def _require_part(block: Any, key: str, where: str) -> None:
    settings = mapping(block, where)
    if settings:  # a fine-tuned hydra may take its parts from a checkpoint
        cls = _model_class(settings.pop(key, None), f"{where}.{key}")
        _requireaccepted_settings(cls, settings, where)
        require_sizes(settings, accepted_settings(cls), where)


def _model_class(name: Any, where: str) -> type:
    try:
        found = registry.get_model_class(str(name))
    except RuntimeError as error:
        known = registry.mapping["model_name_mapping"]
        module, _, last = str(name).rpartition(".")
        if module == dens_plugin.__name__:
            hint = suggestion(last, dens_plugin.__all__)
        else:
            hint = f"there is no such class in {module}" if module else suggestion(last, known)
        raise ValueError(f"unknown model '{name}' in {where}; {hint}") from error
    if not is_network(found):
        kind = "a class of another kind" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ValueError(f"'{name}' in {where} is no network but {kind}: name a class of torch.nn.Module")
    return found


def is_network(found: Any) -> bool:
    """Whether what a name stands for is a class of networks."""
    return isinstance(found, type) and issubclass(found, nn.Module)


def _requireaccepted_settings(cls: type, settings: Mapping[str, Any], where: str) -> None:
    accepted = accepted_settings(cls)
    for key, value in settings.items():
        if key in accepted:
            _require_kind(value, accepted[key], f"{where}.{key}")
            if key in _WORDS:
                require_one_of(value, _WORDS[key], f"{where}.{key}")
        others = [] if key in accepted else _models_with(key, like=cls)
        if others:
            near = _of_these_words(key, accepted)
            own = f"'{near}'; did you mean that?" if near else "nothing of the kind; leave it out"
            raise ValueError(
                f"unknown key '{key}' in {where}: it belongs to {', '.join(others)}, and {cls.__name__} has {own}"
            )
    reject_unknown(settings, accepted, where)


def _of_these_words(key: str, accepted: Iterable[str]) -> str | None:
    """A name that has all words of a key or some of them and no others, as num_elements of max_num_elements."""
    words = set(key.split("_"))
    return next((name for name in accepted if words <= {*name.split("_")} or words >= {*name.split("_")}), None)


def _require_kind(value: Any, parameter: inspect.Parameter, where: str) -> None:
    """Raise ValueError for a setting of another kind than its default: fairchem's constructors take what comes."""
    kind, stated = type(parameter.default), str(parameter.annotation)
    if kind not in _KINDS or (value is None and "None" in stated):
        return
    word, allowed = _KINDS[kind]
    may_be = " or null" if "None" in stated else ""
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be {word}{may_be}, got {value!r}{_HINTS.get((kind, type(value)), '')}")


def accepted_settings(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name, its base classes' where it passes the rest on to them.

    Those of a head are without the backbone, which no config gives it.
    """
    constructors = _constructors(cls)
    if hasattr(cls, "backbone_class"):  # a flat layout, which passes on to its backbone
        constructors = constructors[:1] + _constructors(cls.backbone_class)
    found: dict[str, inspect.Parameter] = {}
    for constructor in constructors:
        found = {**_arguments(constructor), **found}
        if not _passes_on(constructor):
            break
    if issubclass(cls, HeadInterface):
        found.pop("backbone", None)
    return found


def _models_with(key: str, *, like: type) -> list[str]:
    """Our modules that accept a setting: whole models if ``like`` is one, else backbones and heads."""
    is_whole = issubclass(like, HydraModel)
    modules = {name: getattr(dens_plugin, name) for name in dens_plugin.__all__}
    return [
        f"{dens_plugin.__name__}.{name}"
        for name, module in modules.items()
        if isinstance(module, type) and issubclass(module, nn.Module)
        if issubclass(module, HydraModel) == is_whole and key in accepted_settings(module)
    ]


def _constructors(cls: type) -> list[Any]:
    """Of a class and its bases, in the order in which they are called."""
    return [vars(owner)["__init__"] for owner in cls.__mro__ if "__init__" in vars(owner)]


def _passes_on(constructor: Any) -> bool:
    """Whether a constructor takes any keyword, for the one of a base class."""
    try:
        kinds = {parameter.kind for parameter in inspect.signature(constructor).parameters.values()}
    except ValueError:  # a constructor in C
        return False
    return inspect.Parameter.VAR_KEYWORD in kinds


def _arguments(constructor: Any) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(constructor).parameters
    except ValueError:  # a constructor in C
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named and name != "self"}
