"""The files and normalisers of a config's data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dens_plugin.checks.optim import finite
from dens_plugin.data.lmdb_file import require_whole_lmdb
from dens_plugin.data.molecules.dataset import FORMAT, holds_frames
from dens_plugin.settings import mapping, reject_unknown

_LMDB_FORMATS = ("lmdb", "joined_lmdb", "dens_lmdb", "single_point_lmdb", "trajectory_lmdb", "oc22_lmdb")
_FOLDER_FORMATS = ("ase_read", "ase_read_multi")
_COUNTS = ("first_n", "sample_n")
_SPLIT_SETTINGS = "_split_settings"  # ends the names of blocks that change a data set for one of the splits
_NORMALIZER_KEYS = ("mean", "rmsd", "stdev", "file")
_NORMALIZER_FILES = (".pt", ".npz")  # that fairchem reads
_FOR_ALL_TARGETS = ("file", "fit")  # keys of ``normalizer`` that are no target's


def require_files(dataset: Mapping[str, Any], split: str) -> None:
    """Raise for a data set of which the path does not exist or an LMDB was cut short.

    Raises:
        FileNotFoundError: naming the path and the config key.
        ValueError: naming a truncated file, or one of frames where an LMDB belongs.
    """
    for source in _sources(dataset, split):
        if not Path(source).exists():
            raise FileNotFoundError(f"dataset.{split}.src: there is no '{source}'; set it to a data set's path")
        if dataset.get("format", "lmdb") in _LMDB_FORMATS:
            _require_no_frames(source, split)
            require_whole_lmdb(source)
        if dataset.get("format") in _FOLDER_FORMATS and not dataset.get("index_file"):
            _require_files_of_folder(Path(source), dataset, split)


def _require_no_frames(source: str, split: str) -> None:
    if Path(source).is_file() and holds_frames(source):
        remedy = (
            "for training make data sets of it: `dens data molecules`, then `dens init`"
            if split == "train"
            else f"`format: {FORMAT}` beside it reads it as it is"
        )
        raise ValueError(f"dataset.{split}.src: '{source}' is by its name a file of frames, and no LMDB; {remedy}")


def _require_files_of_folder(source: Path, dataset: Mapping[str, Any], split: str) -> None:
    """Raise ValueError where ASE is to read the files of a folder and there is none, or it is a file itself."""
    where, pattern = f"dataset.{split}", str(dataset.get("pattern", "*"))
    if source.is_file():
        remedy = "" if split == "train" else f", or read it as it is by `format: {FORMAT}`"
        raise ValueError(
            f"{where}.src: '{source}' is a file, and the format {dataset['format']} takes a folder: set {where}.src to "
            f"'{source.parent}' and {where}.pattern to '{source.name}'{remedy}"
        )
    try:
        found = next(source.glob(pattern), None)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{where}.pattern '{pattern}' is none of file names: {error}") from error
    if found is None:
        raise ValueError(
            f"{where}.pattern: no file of '{source}' is called '{pattern}'; set it to what they are called"
        )


def with_train_settings(block: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """A split's settings with those of training behind them, which fairchem takes unless it is told not to."""
    return {**train, **block} if block.get("use_train_settings", True) else dict(block)


def require_counts(dataset: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for an impossible number of structures to take, which a slice would not refuse."""
    for key in _COUNTS:
        count = dataset.get(key)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError(
                f"{where}.{key} must be a whole number above 0, got {count!r}; leave it out to take all structures"
            )
    blocks = {key: value for key, value in dataset.items() if key.endswith(_SPLIT_SETTINGS)}
    if isinstance(dataset.get("splits"), Mapping):
        blocks |= {f"splits.{name}": value for name, value in dataset["splits"].items()}
    for name, block in blocks.items():
        if isinstance(block, Mapping):
            require_counts(block, f"{where}.{name}")


def require_distinct(datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if two splits name the same LMDB, which can be opened only once in a process."""
    seen: dict[Path, str] = {}
    for split, dataset in datasets.items():
        if dataset.get("format", "lmdb") not in _LMDB_FORMATS:
            continue
        for source in _sources(dataset, split):
            path = Path(source).resolve()
            if path in seen:
                raise ValueError(
                    f"dataset.{seen[path]}.src and dataset.{split}.src are both '{source}', and LMDB opens a file "
                    "only once in a process; give one of them a copy, or leave it out"
                )
            seen[path] = split


def require_normalizers(transforms: Any, where: str) -> None:
    """Raise ValueError for an invalid ``normalizer`` among the ``transforms`` of a data set.

    Raises:
        FileNotFoundError: for a file of it that does not exist, naming the key.
    """
    block = mapping(mapping(transforms, where).get("normalizer") or {}, f"{where}.normalizer")
    if block.get("file") is not None and not Path(str(block["file"])).is_file():
        raise FileNotFoundError(
            f"{where}.normalizer.file: there is no '{block['file']}'; set it to a file of normalisers"
        )
    for target in block.keys() - set(_FOR_ALL_TARGETS):
        key = f"{where}.normalizer.{target}"
        values = mapping(block[target], key)
        reject_unknown(values, _NORMALIZER_KEYS, key)
        numbers = sorted(name for name in values.keys() - {"file"} if values[name] is not None)
        if values.get("file") is None and not ("mean" in numbers and {"rmsd", "stdev"} & set(numbers)):
            raise ValueError(f"{key} needs `mean` and `stdev`, or a `file`; `dens data check` prints them")
        if values.get("file") is not None and numbers:
            raise ValueError(
                f"{key} has both a file and {', '.join(numbers)}, perhaps of an included config, and fairchem would "
                "take the file alone: set one of them to null"
            )
        if values.get("file") is not None:
            _require_readable(values["file"], f"{key}.file")
        for name in numbers:
            found = finite(values[name], f"{key}.{name}", least=-math.inf)
            if name != "mean" and found <= 0:
                raise ValueError(f"{key}.{name} must be above 0, got {found}; `dens data check` prints a normaliser")


def _require_readable(file: Any, where: str) -> None:
    if not isinstance(file, (str, Path)) or Path(file).suffix not in _NORMALIZER_FILES:
        raise ValueError(f"{where} must be a .pt or .npz file, got {file!r}; or give `mean` and `stdev` in its place")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{where}: there is no '{file}'; set it to a normaliser's path")


def _sources(dataset: Mapping[str, Any], split: str) -> list[str]:
    sources = dataset.get("src", [])
    found = [sources] if isinstance(sources, (str, Path)) else sources
    if not isinstance(found, (list, tuple)) or not all(isinstance(source, (str, Path)) for source in found):
        raise ValueError(
            f"dataset.{split}.src must be a path or a list of paths, got {sources!r}; to go without these data set "
            f"dataset.{split} to null (--dataset.{split}=null)"
        )
    return [str(source) for source in found]
