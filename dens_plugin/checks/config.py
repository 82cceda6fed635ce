"""A whole config, looked at before anything is built: `require_sound`.

What is wrong with one of its settings is a line that names the setting, where fairchem has a traceback from the middle
of a run, or nothing. The parts are `schema` (keys), `names`, `optim`, `objective`, `model` and `dataset`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports

from dens_plugin import compat
from dens_plugin.checks.dataset import (
    require_counts,
    require_distinct,
    require_files,
    require_normalizers,
    with_train_settings,
)
from dens_plugin.checks.files import ConfigFile
from dens_plugin.checks.metrics import with_metrics
from dens_plugin.checks.model import require_known_model
from dens_plugin.checks.names import require_known_names
from dens_plugin.checks.objective import objective_from_config
from dens_plugin.checks.optim import require_numbers, require_optim
from dens_plugin.checks.schema import require_known_keys, require_read_keys
from dens_plugin.checks.trust import require_plain_files
from dens_plugin.checks.warm_start import warm_start_of
from dens_plugin.data.oc22_references import require_references
from dens_plugin.settings import mapping

_NEEDED = ("dataset", "model", "optim")
_SPLITS = ("train", "val", "test")
_NEEDED_SPLITS = {"train": "train", "validate": "val", "predict": "test"}


def require_sound(config: Mapping[str, Any], files: Sequence[ConfigFile] = ()) -> None:
    """Look at what needs no model and no data, in this process: errors of workers are hard to read.

    Args:
        config: as the command line has it.
        files: that it was made of, where they are known.

    Raises:
        FileNotFoundError: for a path in the config that does not exist.
        ValueError: for a config that makes no sense.
    """
    missing = [key for key in _NEEDED if key not in config]
    if missing:
        raise ValueError(f"the config has no `{missing[0]}` block; see configs/experiment for examples")
    setup_imports(config)
    require_known_keys(config, files)
    require_read_keys(config)
    require_known_names(config)
    is_ours = registry.get_trainer_class(config.get("trainer", "ocp")).__module__.startswith("dens_plugin.")
    require_numbers(mapping(config["optim"], "optim"), is_text_read=is_ours)
    if is_ours:
        require_optim(config["optim"], amp=bool(config.get("amp")))
        with_metrics(config.get("evaluation_metrics"), objective_from_config(config))
    require_known_model(config["model"])
    datasets = dict(_datasets(config["dataset"]))
    needed = _NEEDED_SPLITS.get(config.get("mode", ""))
    if needed and not datasets.get(needed, {}).get("src"):
        raise ValueError(
            f"mode '{config['mode']}' needs structures: set dataset.{needed}.src, e.g. --dataset.{needed}.src=DATA"
        )
    for split, dataset in datasets.items():
        require_counts(dataset, f"dataset.{split}")
        require_normalizers(dataset.get("transforms", {}), f"dataset.{split}.transforms")
        require_files(with_train_settings(dataset, datasets.get("train", {})), split)
    require_distinct(datasets)
    if is_ours:
        require_references(datasets)
    require_plain_files(config)
    if (config.get("task") or {}).get("warm_start"):
        path = warm_start_of(config["task"]["warm_start"]).path
        compat.require_weights(compat.load_checkpoint(path, on_demand=True), path)


def _datasets(block: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The splits of a config's ``dataset``, a mapping or, in older configs, a list."""
    splits = dict(zip(_SPLITS, block, strict=False)) if isinstance(block, list) else mapping(block, "dataset")
    for name in _SPLITS:
        if splits.get(name):
            yield name, mapping(splits[name], f"dataset.{name}")
