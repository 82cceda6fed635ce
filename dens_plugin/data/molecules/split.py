"""Which frames are for training, validation and test: drawn from a seed, or read from a published split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dens_plugin.data.molecules.archives import open_npz, read_array

NAMES = ("train", "val", "test")
_PREFIXES = ("", "idx_", "index_")  # what other codes put before the names
_SUFFIXES = ("", "_idx", "_indices")


class Split(NamedTuple):
    """Indices of frames, each sorted, shape (number of frames,)."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Sizes(NamedTuple):
    """How many frames to draw for training and validation; the rest is for test, or at most ``test`` of them."""

    train: int
    val: int
    test: int | None = None


def parse_sizes(text: str) -> Sizes:
    """Read ``950,50`` or ``950,50,1000``.

    Raises:
        ValueError: If it is something else.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or min(numbers, default=0) < 1:
        raise ValueError(f"--split must be TRAIN,VAL or TRAIN,VAL,TEST, numbers of frames such as 950,50, got '{text}'")
    return Sizes(*numbers)


def draw(candidates: np.ndarray, sizes: Sizes, *, seed: int) -> Split:
    """Draw a split; the frames of a smaller training set with the same seed are not those of a larger one.

    Args:
        candidates: Indices of the frames to draw from, shape (n,).
        sizes: How many.
        seed: Of the permutation.

    Raises:
        ValueError: If there are fewer frames than asked for.
    """
    wanted = sizes.train + sizes.val + (sizes.test or 0)
    if wanted > len(candidates):
        raise ValueError(
            f"--split {','.join(str(size) for size in sizes if size is not None)} asks for {wanted:,} frames, there "
            f"are {len(candidates):,}: ask for fewer."
        )
    order = np.random.default_rng(seed).permutation(candidates)
    ends = (sizes.train, sizes.train + sizes.val, wanted if sizes.test else len(order))
    return Split(*(np.sort(order[start:end]) for start, end in zip((0, *ends), ends, strict=False)))


def read_split(paths: Sequence[Path], *, frames: int, sizes: Sizes, seed: int) -> Split:
    """Read a published split.

    Args:
        paths: One npz or json file with train, val and test; or one or two files with an index per line, as revised
            MD17 has: for training (from which validation frames are drawn) and for test.
        frames: Number of frames of the data.
        sizes: Of training and validation, where both are in one list.
        seed: Of the draw of the validation frames.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file cannot be read, or its indices are not those of different frames of the data.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: give the file of a split.")
    if paths[0].suffix in (".npz", ".json"):
        split = _read_named(paths, frames)
    else:
        split = _read_lists(paths, frames, sizes, seed)
    _require_indices(split, paths[0], frames)
    return Split(*(np.sort(part) for part in split))


def write_split(path: Path, split: Split, *, frames: int, seed: int) -> None:
    """Write a split as npz: ``train``, ``val``, ``test``, ``frames`` (of the data it is of) and ``seed``."""
    with open(path, "wb") as file:
        np.savez(file, **split._asdict(), frames=frames, seed=seed)


def _read_named(paths: Sequence[Path], frames: int) -> Split:
    path = paths[0]
    if len(paths) > 1:
        raise ValueError(f"{path} holds a whole split: give it alone.")
    content = _load(path)
    of = content.get("frames", frames)
    if str(of) != str(frames):
        raise ValueError(f"{path} splits {of} frames, the data have {frames}: give its own data.")
    parts = [_part(content, name, path) for name in NAMES]
    if parts[0] is None or parts[1] is None:
        raise ValueError(f"{path} has {', '.join(content)}: a split needs train and val, and may have test.")
    rest = np.setdiff1d(np.arange(frames), np.concatenate(parts[:2])) if parts[2] is None else parts[2]
    return Split(parts[0], parts[1], rest)


def _load(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".npz":
        with open_npz(path) as file:
            return {name: read_array(path, file, name) for name in file.files}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no json file that can be read ({error}).") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold lists of indices under train, val and test.")
    return content


def _part(content: Mapping[str, Any], name: str, path: Path) -> np.ndarray | None:
    names = (f"{prefix}{name}{suffix}" for prefix in _PREFIXES for suffix in _SUFFIXES)
    found = next((key for key in names if key in content), None)
    if found is None:
        return None
    try:
        part = np.asarray(content[found]).reshape(-1)
    except ValueError:
        raise ValueError(f"{path}: {found} must be a list of indices of frames, not of lists.") from None
    if len(part) and not np.issubdtype(part.dtype, np.integer):
        raise ValueError(f"{path}: {found} must be indices of frames, got {part.dtype}.")
    return part.astype(int)


def _read_lists(paths: Sequence[Path], frames: int, sizes: Sizes, seed: int) -> Split:
    if len(paths) > 2:
        raise ValueError("--split-file takes one whole split, or index files for training and for test.")
    lists = [_read_list(path) for path in paths]
    split = draw(lists[0], Sizes(sizes.train, sizes.val), seed=seed)
    if len(split.test):
        raise ValueError(
            f"{paths[0]} has {len(lists[0]):,} frames, --split gives {sizes.train} to training and {sizes.val} to "
            "validation: their sum must be all of them."
        )
    return split._replace(test=lists[1] if len(lists) > 1 else np.setdiff1d(np.arange(frames), lists[0]))


def _read_list(path: Path) -> np.ndarray:
    try:
        return np.array([int(word) for word in path.read_text().replace(",", " ").split()], dtype=int)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must have an index per line ({error}).") from error


def _require_indices(split: Split, path: Path, frames: int) -> None:
    everything = np.concatenate(split)
    if not len(split.train) or not len(split.val):
        raise ValueError(f"{path}: train and val must each have a frame.")
    if everything.min() < 0 or everything.max() >= frames:
        raise ValueError(
            f"{path} has indices from {everything.min():,} to {everything.max():,}, the data have {frames:,} frames, "
            "counted from 0: is it the split of other data?"
        )
    if len(np.unique(everything)) < len(everything):
        raise ValueError(f"{path} has a frame twice: training, validation and test must not share any.")
