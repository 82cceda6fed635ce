"""What a leaderboard file holds: tasks, splits, keys, the sizes of the test sets, and the two conventions.

A file is one ``.npz`` with, for each split, ``{split}_ids`` (B,) text, ``{split}_energy`` (B,) eV and, for S2EF,
``{split}_forces`` (M, 3) eV/Å, structure after structure, and ``{split}_chunk_idx`` (B - 1,), the row of the forces at
which each structure but the first begins.

References:
    - EvalAI: fairchem-core 1.10, ``scripts/make_submission_file.py`` and ``OCPTrainer.predict``; energies flat as the
      maintainers ask in https://github.com/facebookresearch/fairchem/issues/663.
    - Hugging Face: https://facebookresearch.github.io/fairchem/oc20-1
    - Sizes of OC22: with those of the training and validation sets (8,225,293, 394,727 and 450,669) they make up the
      9,854,504 calculations of the OC22 paper's abstract (https://arxiv.org/abs/2206.08917).
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dens_plugin.settings import suggestion

OC20_SPLITS = ("id", "ood_ads", "ood_cat", "ood_both")
OC22_SPLITS = ("id", "ood")
_NO_SIZES: MappingProxyType[str, int] = MappingProxyType({})


class Task(NamedTuple):
    """A leaderboard.

    Attributes:
        name: what users type.
        splits: in the order of the file.
        has_forces: whether the file holds forces, and its structures are frames of systems.
        sizes: split -> structures in the test set; empty where they are not known.
        needs_float32: whether energies are too large for float16.
    """

    name: str
    splits: tuple[str, ...]
    has_forces: bool
    sizes: MappingProxyType[str, int]
    needs_float32: bool

    @property
    def fields(self) -> tuple[str, ...]:
        """What each split has."""
        return ("ids", "energy", "forces", "chunk_idx") if self.has_forces else ("ids", "energy")

    @property
    def keys(self) -> tuple[str, ...]:
        """All names of arrays in the file."""
        return tuple(f"{split}_{field}" for split in self.splits for field in self.fields)


class Convention(NamedTuple):
    """How a leaderboard names the structures of S2EF and which of their atoms it wants; IS2RE is the same for all.

    Attributes:
        name: what users type.
        frames_in_ids: whether ids are ``sid_fid``, as fairchem predicts them, or ``sid``.
        fixed_atoms: whether forces of fixed atoms are there too.
    """

    name: str
    frames_in_ids: bool
    fixed_atoms: bool


def _task(name: str, splits: tuple[str, ...], sizes: tuple[int, ...]) -> Task:
    return Task(
        name,
        splits,
        has_forces=name.endswith("s2ef"),
        sizes=MappingProxyType(dict(zip(splits, sizes, strict=True))) if sizes else _NO_SIZES,
        needs_float32=name.startswith("oc22"),
    )


TASKS = {
    task.name: task
    for task in (
        _task("oc20-s2ef", OC20_SPLITS, (999_736, 999_859, 999_826, 999_973)),
        _task("oc20-is2re", OC20_SPLITS, (24_948, 24_930, 24_965, 24_985)),
        _task("oc22-s2ef", OC22_SPLITS, (398_377, 385_438)),
        _task("oc22-is2re", OC22_SPLITS, ()),
    )
}
CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("evalai", frames_in_ids=True, fixed_atoms=False),
        Convention("huggingface", frames_in_ids=False, fixed_atoms=True),
    )
}


def task_of(keys: Iterable[str]) -> Task:
    """The task whose keys a file's are most like."""
    keys = set(keys)
    return max(TASKS.values(), key=lambda task: len(keys & set(task.keys)) / len(keys | set(task.keys)))


class Rules(NamedTuple):
    """What a file must obey.

    Attributes:
        task: of the file.
        convention: of the leaderboard.
        any_size: whether other numbers of structures than those of the test sets are allowed.
    """

    task: Task
    convention: Convention
    any_size: bool

    @property
    def frames_in_ids(self) -> bool:
        """Whether ids are ``sid_fid``; relaxed structures have no frames."""
        return self.task.has_forces and self.convention.frames_in_ids

    @property
    def fixed_atoms(self) -> bool:
        """Whether there are forces of fixed atoms."""
        return self.task.has_forces and self.convention.fixed_atoms


def rules_of(task: str, convention: str, *, any_size: bool = False) -> Rules:
    """The rules of a task and a convention by their names.

    Raises:
        ValueError: for an unknown name, or a task that the convention's leaderboard does not have.
    """
    for kind, name, known in (("task", task, TASKS), ("convention", convention, CONVENTIONS)):
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'; {suggestion(name, known)}")
    if task.startswith("oc22") and convention == "huggingface":
        raise ValueError(f"the leaderboard on Hugging Face has no '{task}': leave out --convention huggingface")
    return Rules(TASKS[task], CONVENTIONS[convention], any_size)


def without_frames(ids: np.ndarray) -> np.ndarray:
    """The ``sid`` of structures (B,) that fairchem's ``predict`` calls ``sid_fid``; a ``sid`` alone stays."""
    return np.array([_without_frame(each) for each in ids.tolist()], dtype=np.str_)


def paths_by_split(
    arguments: Iterable[str], option: str, *, form: str = "SPLIT=PATH, for example id=predictions.npz"
) -> dict[str, str]:
    """Read ``SPLIT=PATH`` arguments.

    Args:
        arguments: as typed.
        option: what they are arguments of, for the messages.
        form: how they look, likewise.

    Raises:
        ValueError: for an argument of another form, or a split or path that comes twice.
    """
    paths: dict[str, str] = {}
    for argument in arguments:
        split, equals, path = argument.partition("=")
        if not (equals and path):
            raise ValueError(f"{option} '{argument}' must be {form}")
        if split in paths or path in paths.values():
            raise ValueError(f"{option} '{argument}' repeats a split or a path: each split has its own")
        paths[split] = path
    return paths


def _without_frame(identifier: str) -> str:
    sid, _, frame = identifier.rpartition("_")
    return sid if sid and frame.isdigit() else identifier
