"""A config as the command line has it: files and options merged, keys that null drops left out."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import build_config, setup_imports
from fairchem.core.models.base import HydraModel

import dens_plugin.checks.registered  # noqa: F401
from dens_plugin.checks.model import accepted_settings, is_network
from dens_plugin.data.molecules.dataset import FORMAT, is_frames_file

_EVALUATED = ("val", "test", "relax")
_BLOCKS = ("task", "optim", "outputs", "loss_functions", "evaluation_metrics", "dataset", "model", "slurm")
_VALUES = ("objective",)  # blocks in which null is a value as well; they are read with that in mind


def merged_config(args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """fairchem's merged config, in which null drops a key that an included file has, and files of frames are known.

    Args:
        args: fairchem's options.
        overrides: changes of the config, ``--block.key=value``.

    Raises:
        ValueError: if structures to train on are in a file of frames, or null leaves a hydra without a part.
    """
    return with_formats(without_dropped(build_config(args, list(overrides))))


def without_dropped(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config less the keys that are null.

    Null stays in the objective's block, and for a setting of a network that may be None. A data set that is null stays,
    as fairchem asks for its key.

    Raises:
        ValueError: for a hydra whose backbone or heads are null, and come from no checkpoint either.
    """
    setup_imports(config)
    kept = {key: value for key, value in config.items() if value is not None or key not in _BLOCKS}
    kept |= {key: _dropped(kept[key]) for key in _BLOCKS if key in kept and key not in ("model", "dataset")}
    if isinstance(kept.get("dataset"), Mapping):
        kept["dataset"] = {split: _dropped(block) for split, block in kept["dataset"].items()}
    if isinstance(kept.get("model"), Mapping):
        kept["model"] = _model(kept["model"])
    return kept


def _dropped(value: Any) -> Any:
    if isinstance(value, list):
        return [_dropped(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {key: item if key in _VALUES else _dropped(item) for key, item in value.items() if item is not None}


def _model(block: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings; a head that is null is left out, and a setting unless None is one of its values."""
    name = str(block.get("name"))
    model = _settings(block, name)
    if name != "hydra" and _class(name) is not HydraModel:
        return model
    _require_parts(model)
    if isinstance(model.get("backbone"), Mapping):
        model["backbone"] = _settings(model["backbone"], str(model["backbone"].get("model")))
    if isinstance(model.get("heads"), Mapping):
        heads = {head: settings for head, settings in model["heads"].items() if settings is not None}
        model["heads"] = {
            head: _settings(settings, str(settings.get("module"))) if isinstance(settings, Mapping) else settings
            for head, settings in heads.items()
        }
    return model


def _require_parts(model: Mapping[str, Any]) -> None:
    for part in ("backbone", "heads"):
        if part in model and model[part] is None and model.get("finetune_config") is None:
            raise ValueError(
                f"model.{part} is null, and a hydra needs one: give it a block, as the files in configs/model do, "
                "or leave the key out to keep that of an included file"
            )


def _settings(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    cls = _class(name)
    accepted = {} if cls is None else accepted_settings(cls)
    return {key: value for key, value in block.items() if value is not None or _may_be_none(accepted.get(key))}


def _class(name: str) -> type | None:
    try:
        found = registry.get_model_class(name)
    except (RuntimeError, ValueError):
        return None  # told later, with the most similar name
    return found if is_network(found) else None


def _may_be_none(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and (parameter.default is None or "None" in str(parameter.annotation))


def with_formats(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with ``format: frames`` for the splits whose data are a file of frames and that state no format.

    Raises:
        ValueError: if structures to train on are such a file.
    """
    datasets = config.get("dataset")
    if not isinstance(datasets, Mapping):
        return dict(config)
    changed = {}
    for split, block in datasets.items():
        is_file = isinstance(block, Mapping) and is_frames_file(block.get("src"))
        if is_file and split in _EVALUATED and "format" not in block:
            changed[split] = {**block, "format": FORMAT}
        if is_file and split == "train" and block.get("format", "lmdb") in ("lmdb", FORMAT):
            raise ValueError(
                f"dataset.train.src: '{block['src']}' is a file of frames, which validation, prediction and relaxation "
                "read as it is; for training make data sets of it: `dens data molecules`, then `dens init`"
            )
    return {**config, "dataset": {**datasets, **changed}}
