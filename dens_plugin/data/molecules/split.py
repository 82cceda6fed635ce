"""Which frames are for training, validation and test: drawn from a seed, or read from a published split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dens_plugin.data.molecules.archives import open_npz, read_array

NAMES = ("train", "val", "test")
_PREFIXES = ("", "idx_", "index_")  # what other codes put before the names
_SUFFIXES = ("", "_idx", "_indices")
_CORMORANT = (130_831, 100_000, 117_748)  # molecules, and where validation and test begin


class Split(NamedTuple):
    """Indices of frames, each sorted, shape (number of frames,)."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Sizes(NamedTuple):
    """How much to draw for training and validation; the rest is for test, or at most ``test`` of it.

    Numbers are of frames, or of molecules where those are drawn; below 1 they are shares of all.
    """

    train: float
    val: float
    test: float | None = None

    def counts(self, available: int) -> Sizes:
        """The same as whole numbers."""
        if not self.are_shares:
            return self
        whole = [round(share * available) for share in self if share is not None]
        if self.test is not None and math.isclose(self.train + self.val + self.test, 1):
            whole[2] = available - whole[0] - whole[1]
        return Sizes(*whole)

    @property
    def are_shares(self) -> bool:
        """Whether they are shares and not numbers."""
        return self.train < 1


def parse_sizes(text: str) -> Sizes:
    """Read ``950,50``, ``950,50,1000`` or ``0.8,0.1,0.1``.

    Raises:
        ValueError: If it is something else.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    reason = _impossible(numbers)
    if reason:
        raise ValueError(
            f"--split must be TRAIN,VAL or TRAIN,VAL,TEST, numbers such as 950,50 or shares such as 0.8,0.1,0.1, got "
            f"'{text}': {reason}"
        )
    return Sizes(*numbers) if numbers[0] < 1 else Sizes(*map(int, numbers))


def _impossible(numbers: Sequence[float]) -> str:
    """Why some numbers are no sizes of a split; empty if they are."""
    if len(numbers) not in (2, 3):
        return "two or three numbers with commas between"
    if not all(number > 0 for number in numbers):  # NaN is not
        return "each must be above 0; leave out TEST for the rest"
    if all(number < 1 for number in numbers):
        return "" if sum(numbers) < 1 + 1e-9 else f"the shares make {sum(numbers):g}, more than all"
    if any(number < 1 for number in numbers):
        return "shares below 1 and numbers cannot be mixed"
    return "" if all(number.is_integer() for number in numbers) else "numbers of frames are whole"


def draw(candidates: np.ndarray, sizes: Sizes, *, seed: int, unit: str = "frames") -> Split:
    """Draw a split; the frames of a smaller training set with the same seed are not those of a larger one.

    The order is that of TorchMD-NET's ``make_splits`` with the same seed, where all frames are candidates.

    Args:
        candidates: Indices to draw from, shape (n,).
        sizes: How many.
        seed: Of the permutation.
        unit: What is counted, for the message.

    Raises:
        ValueError: If there are fewer than asked for.
    """
    counts = sizes.counts(len(candidates))
    wanted = counts.train + counts.val + (counts.test or 0)
    asked = f"--split {','.join(str(size) for size in sizes if size is not None)}"
    if wanted > len(candidates):
        raise ValueError(f"{asked} asks for {wanted:,} {unit}, there are {len(candidates):,}: ask for fewer.")
    if min(counts.train, counts.val) < 1:
        alone = "leave out --split-by molecules" if unit == "molecules" else "give a file with more"
        raise ValueError(
            f"{asked} of {len(candidates):,} {unit} makes {counts.train} for training and {counts.val} for validation, "
            f"which need one each: {'give larger shares, or numbers' if len(candidates) > 1 else alone}."
        )
    order = np.random.default_rng(seed).permutation(candidates)
    ends = (counts.train, counts.train + counts.val, wanted if counts.test else len(order))
    return Split(*(np.sort(order[start:end]) for start, end in zip((0, *ends), ends, strict=False)))


def draw_molecules(candidates: np.ndarray, molecules: np.ndarray, sizes: Sizes, *, seed: int) -> Split:
    """Draw whole molecules, so that no two parts share one.

    Args:
        candidates: Indices of frames, shape (n,).
        molecules: The number of each one's molecule, shape (n,).
        sizes: How many molecules.
        seed: Of the permutation.

    Raises:
        ValueError: If there are fewer than asked for.
    """
    drawn = draw(np.unique(molecules), sizes, seed=seed, unit="molecules")
    return Split(*(candidates[np.isin(molecules, part)] for part in drawn))


def draw_conformations(candidates: np.ndarray, molecules: np.ndarray, shares: Sizes, *, seed: int) -> Split:
    """Draw the same shares of every molecule's frames; what rounding leaves is for training.

    Args:
        candidates: Indices of frames, shape (n,).
        molecules: The number of each one's molecule, shape (n,).
        shares: Of training, validation and test.
        seed: Of the permutation.

    Raises:
        ValueError: If sizes are numbers, or no molecule has enough frames.
    """
    if not shares.are_shares:
        raise ValueError("--split-by conformations needs shares, e.g. --split 0.8,0.1,0.1")
    test = 1 - shares.train - shares.val if shares.test is None else shares.test
    order = np.random.default_rng(seed).permutation(len(candidates))
    order = order[np.argsort(molecules[order], kind="stable")]
    _, starts, counts = np.unique(molecules[order], return_index=True, return_counts=True)
    place = (np.arange(len(order)) - np.repeat(starts, counts) + 0.5) / np.repeat(counts, counts)  # within 0 and 1
    bounds = (0.0, test, test + shares.val, test + shares.val + shares.train)
    parts = [np.sort(candidates[order[(low <= place) & (place < high)]]) for low, high in pairwise(bounds)]
    if not len(parts[1]):
        raise ValueError(f"--split: no molecule has enough frames for a share of {shares.val:g} for validation.")
    return Split(parts[2], parts[1], parts[0])


def draw_cormorant(candidates: np.ndarray) -> Split:
    """The split of QM9 that Cormorant published and EGNN and others took over: 100,000, 17,748 and 13,083 molecules.

    Args:
        candidates: Indices of the molecules that are not excluded, shape (130831,).

    Raises:
        ValueError: If they are not as many.
    """
    if len(candidates) != _CORMORANT[0]:
        raise ValueError(
            f"--split cormorant is of the {_CORMORANT[0]:,} molecules of QM9 that are not excluded, there are "
            f"{len(candidates):,}: give all of QM9 and --exclude uncharacterized.txt."
        )
    order = candidates[np.random.RandomState(0).permutation(len(candidates))]
    return Split(*(np.sort(part) for part in np.split(order, _CORMORANT[1:])))


def among(split: Split, candidates: np.ndarray, *, frames: int) -> Split:
    """A given split without the frames that are excluded.

    One that divides as many frames as are left counts only those, as splits of QM9 by users of PyG do.

    Args:
        split: As it was read.
        candidates: Indices of the frames that are left, sorted, shape (n,).
        frames: Number of all frames.
    """
    everything = np.concatenate(split)
    if len(candidates) < frames and len(everything) == len(candidates) and everything.max() < len(candidates):
        return Split(*(candidates[part] for part in split))
    return Split(*(part[np.isin(part, candidates)] for part in split))


def published(parts: Mapping[str, np.ndarray], sizes: Sizes | None, *, frames: int, seed: int, where: str) -> Split:
    """The split that a data set itself has; validation, or both parts, are drawn where sizes are given.

    Args:
        parts: Indices of ``train`` and, as far as it says, ``val`` and ``test``.
        sizes: Of training and validation, drawn from both; None for the set's own.
        frames: Number of frames.
        seed: Of the draw.
        where: The data set, for the message.

    Raises:
        ValueError: If there are fewer frames than asked for, or the parts are not of these frames.
    """
    if sizes is None and "val" not in parts:
        raise ValueError(f"{where} says what is for training, and not what is for validation: give --split.")
    nothing = np.zeros(0, dtype=int)
    split = Split(*(np.asarray(parts.get(name, nothing)) for name in NAMES))
    if sizes is not None:
        drawn = draw(np.concatenate(split[:2]), sizes._replace(test=None), seed=seed)
        test = split.test
        if sizes.test is not None:
            count = sizes.counts(len(test)).test or 0
            test = np.random.default_rng(seed).permutation(test)[: int(count)]
        split = Split(drawn.train, drawn.val, test)
    _require_indices(split, Path(where), frames)
    return Split(*(np.sort(part) for part in split))


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
