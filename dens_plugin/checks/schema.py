"""Which keys a config may have: those that fairchem, its loggers and data sets, or this package read.

fairchem passes over a key that nothing reads, so that a slip changes what is trained without a word. Blocks that other
code may read keep what they have: a trainer or a data set of a third package, and the model (see `model`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fairchem.core.common.registry import registry

from dens_plugin.checks.files import ConfigFile
from dens_plugin.data.molecules.dataset import FORMAT
from dens_plugin.data.molecules.dataset import OPTIONS as OPTIONS_OF_FRAMES
from dens_plugin.settings import suggestion

Path = tuple[str | int, ...]

_ALIKE = 0.8  # of 1: how near a name is to a known one to be taken for a slip rather than for another block's

OPTIM = """
    autocast accumulate_steps max_bad_steps keep_checkpoints batch_size eval_batch_size num_workers loader_workers
    loader_graph pad cuda_graph batch_atoms batch_edges checkpoint_every eval_every clip_grad_norm ema_decay ema_warmup
    load_balancing load_balancing_on_error
    load_datasets_and_model_then_exit lr_initial max_epochs optimizer optimizer_params scheduler scheduler_params
    weight_decay loss_energy loss_force loss_forces energy_coefficient force_coefficient use_denoising_pos
    denoising_pos_params denoising_pos_coefficient
""".split()  # noqa: SIM905  (here and below: a list of literals would fill the page)
# Set by options of the command line, whatever a file says.
OPTIONS = """
    mode identifier timestamp_id seed is_debug run_dir print_every amp checkpoint cpu submit summit world_size
    distributed_backend gp_gpus
""".split()  # noqa: SIM905
_OPTION_NAMES = {"is_debug": "debug", "world_size": "num-gpus", "distributed_backend": "cpu"}  # where they differ
_TOP = """
    trainer dataset model task optim outputs loss_functions evaluation_metrics logger slurm hide_eval_progressbar
    skip_experimental_imports local_rank loss_fns eval_metrics
""".split()  # noqa: SIM905  (the last two in fairchem's configs before 2.0)
_TASK = """
    objective warm_start predict_fixed_atoms prediction_dtype dataset eval_relaxations num_relaxation_batches relax
    relax_cell relax_volume relaxation_fmax relaxation_steps relax_opt relax_dataset save_full_traj
    set_deterministic_scatter strict_load write_pos primary_metric train_on_free_atoms eval_on_free_atoms description
    type metric labels grad_input
""".split()  # noqa: SIM905  (the last four in files of before 2.0, for the reader)
_SPLITS = ("train", "val", "test", "relax")
_TRAINERS_DATASETS = (
    "dataset",
    "val_dataset",
    "test_dataset",
    "relax_dataset",
)  # of these splits, in fairchem's trainers
_BLOCKS = ("task", "optim", "outputs", "loss_functions", "evaluation_metrics", "logger")
_DATASET = """
    format src key_mapping transforms lin_ref metadata_path total_shards shard splits seed max_atoms subset_to first_n
    sample_n no_shuffle use_train_settings train_split_settings val_split_settings test_split_settings normalize_labels
    target_mean target_std grad_target_mean grad_target_std
""".split()  # noqa: SIM905
_ASE = """
    a2g_args keep_in_memory atoms_transform_args include_relaxed_energy ase_read_args pattern index_file use_tqdm
    connect_args select_args
""".split()  # noqa: SIM905
_OC22 = ("oc20_ref", "data2train", "train_on_oc20_total_energies")
_TRANSFORMS = ("normalizer", "element_references", "decompose_tensor")
_OUTPUT = """
    level property decomposition parent irrep_dim train_on_free_atoms eval_on_free_atoms prediction_dtype
""".split()  # noqa: SIM905
_LOSS = ("fn", "coefficient", "reduction")
_METRICS = ("primary_metric", "metrics")
_LOGGER = ("name", "project", "entity", "group", "watch")

# Where a key that is at home in one block is told to belong, when it stands in another.
_HOMES = {"optim": OPTIM, "task": _TASK, "evaluation_metrics": _METRICS, "dataset.train": _DATASET}

# Keys of before 2.0, which fairchem reads only where there are no `loss_functions` -> those of now.
_OLD_KEYS = {
    ("optim", "loss_energy"): "loss_functions.energy.fn",
    ("optim", "loss_force"): "loss_functions.forces.fn",
    ("optim", "loss_forces"): "loss_functions.forces.fn",
    ("optim", "energy_coefficient"): "loss_functions.energy.coefficient",
    ("optim", "force_coefficient"): "loss_functions.forces.coefficient",
    ("task", "primary_metric"): "evaluation_metrics.primary_metric",
    ("task", "train_on_free_atoms"): "outputs.forces.train_on_free_atoms",
    ("task", "eval_on_free_atoms"): "outputs.forces.eval_on_free_atoms",
}


_OLD_BLOCKS = {"loss_fns": "loss_functions", "eval_metrics": "evaluation_metrics"}
# The same of a data set: keys of before 2.0 -> what stands under its `transforms.normalizer` now.
_OLD_SCALES = {
    "target_mean": "energy.mean",
    "target_std": "energy.stdev",
    "grad_target_mean": "forces.mean",
    "grad_target_std": "forces.stdev",
}


class Unknown(NamedTuple):
    """A key that nothing reads.

    Attributes:
        path: of blocks and, in lists, places, down to the key.
        allowed: the keys of its block.
    """

    path: Path
    allowed: Sequence[str]

    def message(self, files: Iterable[ConfigFile] = ()) -> str:
        """What is wrong and what to do, with the file that has the key."""
        *block, key = self.path
        where = _dotted(block) or "the config"
        file = next((f" ({file.path})" for file in files if file.has(self.path)), "")
        return f"unknown key '{key}' in {where}{file}; {self._hint(str(key), where)}"

    def _hint(self, key: str, where: str) -> str:
        if key in OPTIONS:
            return f"give {_option(key)} on the command line"
        homes = [home for home, keys in _HOMES.items() if key in keys and home != where]
        if homes and not difflib.get_close_matches(key, self.allowed, cutoff=_ALIKE):
            return f"it belongs under `{homes[0]}`"
        return suggestion(key, self.allowed)


def require_known_keys(config: Mapping[str, Any], files: Iterable[ConfigFile] = ()) -> None:
    """Raise ValueError for a key that nothing reads.

    Args:
        config: as the command line has it; fairchem's registry must be set up (`setup_imports`).
        files: that it was made of, to say which of them has the key.
    """
    if not _is_fairchems(registry.get_trainer_class, config.get("trainer", "ocp")):
        return
    for unknown in unknown_keys(config):
        raise ValueError(unknown.message(files))


def require_read_keys(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a key of fairchem's configs of before 2.0 in a newer one, where fairchem passes over it.

    One that says what the newer key says may stay, as in the authors' files.

    Args:
        config: as the command line has it: fairchem's trainers add the newer keys to an old config.
    """
    if not (config.get("loss_functions") or config.get("loss_fns")):
        return
    for (block, key), new in _OLD_KEYS.items():
        stated = _block(config.get(block)).get(key)
        if stated is not None and stated != _at(config, new):
            raise ValueError(
                f"{block}.{key} is not read where a config has `loss_functions`: set {new} instead and take {key} out, "
                "or set it to null where an included config has it"
            )
    for block, new in _OLD_BLOCKS.items():
        if config.get("loss_functions") and config.get(block):
            raise ValueError(f"`{block}` is not read where a config has `loss_functions`: call it `{new}`")
    _require_read_scales(config.get("dataset"))


def _require_read_scales(dataset: Any) -> None:
    """Raise ValueError for scales of labels as before 2.0, where no normaliser says the same."""
    blocks = dict(enumerate(dataset)) if isinstance(dataset, list) else _block(dataset)
    scales = _block(_block(_block(blocks.get("train", blocks.get(0))).get("transforms")).get("normalizer"))
    for split, block in blocks.items():
        stated = {key: value for key, value in _block(block).items() if value is not None}
        where = f"dataset.{split}"
        if stated.get("normalize_labels") and not scales:
            raise ValueError(
                f"{where}.normalize_labels is not read where a config has `loss_functions`: give "
                "dataset.train.transforms a `normalizer`, which `dens data check` prints"
            )
        for key, new in _OLD_SCALES.items():
            if key in stated and stated[key] != _at(scales, new):
                raise ValueError(
                    f"{where}.{key} is not read where a config has `loss_functions`: set "
                    f"dataset.train.transforms.normalizer.{new} instead and take {key} out"
                )


def _at(config: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path, in which ``loss_functions`` is a list of blocks; None where nothing does."""
    found: Any = config
    for part in path.split("."):
        if isinstance(found, list):
            found = next((block[part] for block in found if isinstance(block, Mapping) and part in block), None)
        else:
            found = _block(found).get(part)
    return found


def require_known_blocks(config: Mapping[str, Any]) -> None:
    """The same for a config as fairchem's trainers keep it: the plain `fairchem` command builds them without a look."""
    blocks = {name: config[name] for name in _BLOCKS if name in config}
    datasets = {split: config.get(key) for split, key in zip(_SPLITS, _TRAINERS_DATASETS, strict=True)}
    require_known_keys({**blocks, "dataset": {split: block for split, block in datasets.items() if block}})


def ignored_options(files: Iterable[ConfigFile]) -> Iterator[str]:
    """A sentence for each setting in a file that an option of the command line always replaces."""
    for file in files:
        for key in OPTIONS:
            if key in file.settings:
                yield f"`{key}` in {file.path} is not read: give {_option(key)} on the command line"


def unknown_keys(config: Mapping[str, Any]) -> Iterator[Unknown]:
    """Every key that nothing reads, from the outermost block on."""
    yield from _unknown((), config, [*_TOP, *OPTIONS])
    for name, allowed in (("task", _TASK), ("optim", OPTIM), ("evaluation_metrics", _METRICS)):
        yield from _unknown((name,), config.get(name), allowed)
    logger = config.get("logger")
    if _is_fairchems(registry.get_logger_class, _block(logger).get("name")):
        yield from _unknown(("logger",), logger, _LOGGER)
    yield from _unknown_of_datasets(config.get("dataset"))
    for name, output in _items(config.get("outputs")):
        yield from _unknown(("outputs", name), output, _OUTPUT)
        for part, settings in _items(_block(output).get("decomposition")):
            yield from _unknown(("outputs", name, "decomposition", part), settings, _OUTPUT)
    losses = config.get("loss_functions")
    for place, loss in enumerate(losses if isinstance(losses, list) else []):
        for target, settings in _items(loss):
            yield from _unknown(("loss_functions", place, target), settings, _LOSS)


def _unknown_of_datasets(dataset: Any) -> Iterator[Unknown]:
    if isinstance(dataset, list):  # files of before 2.0
        blocks: dict[str | int, Any] = dict(enumerate(dataset))
    else:
        yield from _unknown(("dataset",), dataset, _SPLITS)
        blocks = _block(dataset)
    train = _block(blocks.get("train"))
    for split, block in blocks.items():
        own = _block(block)
        inherited = train if own.get("use_train_settings", True) else {}
        known = _keys_of_format(own.get("format", inherited.get("format", "lmdb")))
        if known is None:
            continue
        yield from _unknown(("dataset", split), own, known)
        yield from _unknown(("dataset", split, "transforms"), own.get("transforms"), _TRANSFORMS)
        for name in (f"{each}_split_settings" for each in ("train", "val", "test")):
            yield from _unknown(("dataset", split, name), own.get(name), known)


def _keys_of_format(name: Any) -> list[str] | None:
    """Keys that the data sets of a format read; None if they are of other code."""
    if not _is_fairchems(registry.get_dataset_class, name):
        return None
    if name == FORMAT:
        return [*_DATASET, *OPTIONS_OF_FRAMES]
    return [*_DATASET, *(_ASE if str(name).startswith("ase") else _OC22 if name == "oc22_lmdb" else ())]


def _is_fairchems(find: Callable[[str], type], name: Any) -> bool:
    """Whether a class is fairchem's or ours, so that its keys are known; False for one that does not exist."""
    try:
        return find(str(name)).__module__.partition(".")[0] in ("fairchem", "dens_plugin")
    except RuntimeError:
        return False


def _unknown(block: Path, settings: Any, allowed: Sequence[str]) -> Iterator[Unknown]:
    yield from (Unknown((*block, key), allowed) for key in _block(settings) if key not in allowed)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return _block(value).items()


def _block(value: Any) -> dict[Any, Any]:
    """A block's settings; none where something else stands there, which is told elsewhere."""
    return dict(value) if isinstance(value, Mapping) else {}


def _option(key: str) -> str:
    return "--" + _OPTION_NAMES.get(key, key).replace("_", "-")


def _dotted(path: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
