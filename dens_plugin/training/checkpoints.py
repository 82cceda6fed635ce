"""Checkpoint files that survive a crash, and what changed since the run that wrote one.

Files are written beside, synced and renamed; the last few are kept, and checked before use. The newest has fairchem's
name, ``checkpoint.pt``; the one before it is ``checkpoint.1.pt``, and so on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.compat import damage

NEWEST = "checkpoint.pt"
RUN = "run"  # the block of a checkpoint's config that holds the record
_PARTS = ("optim", "loss_functions", "outputs", "dataset")
_MEANINGLESS = (
    "checkpoint_every",
    "eval_every",
    "num_workers",
    "loader_graph",
    "pad",
    "cuda_graph",
    "eval_batch_size",
    "max_bad_steps",
    "keep_checkpoints",
)
_COPIED = ("optim.scheduler_params.lr",)  # fairchem writes there what stands elsewhere
_SCHEDULE = ("optim.lr", "optim.scheduler", "optim.warmup")  # settings of learning rates
_ROUNDING = 1.5  # steps, by which a number of epochs may differ that fairchem rounds down to steps


def commit(written: Path, path: Path, *, keep: int) -> None:
    """Make a file that was just written the newest of its name, and earlier ones its predecessors.

    The data reaches the disk before the name does, so that at any moment the newest of the names that exist is whole:
    a crash between two renames leaves a gap in the numbers and no half-written file.

    Args:
        written: the complete file, in the folder of ``path``.
        path: the name that it gets.
        keep: how many files of this name to keep, itself included.
    """
    _sync(written)
    for age in range(keep - 1, 0, -1):
        younger = predecessor(path, age - 1)
        if younger.exists():
            younger.replace(predecessor(path, age))
    written.replace(path)
    _sync(path.parent)


def predecessor(path: Path, age: int) -> Path:
    """The name of the file that was at ``path`` so many saves ago."""
    return path.with_suffix(f".{age}{path.suffix}") if age else path


def newest_whole(folder: str | Path) -> Path | None:
    """The newest checkpoint of a run that is whole, or None if the run has none.

    Raises:
        ValueError: if there are checkpoints and none is whole.
    """
    candidates = sorted(Path(folder).glob("checkpoint*.pt"), key=_age)
    candidates = [path for path in candidates if _age(path) >= 0]
    for path in candidates:
        problem = damage(path, own=True) if path.stat().st_size else "empty"
        if problem is None:
            return path
        logging.warning(f"The checkpoint '{path}' is damaged ({problem}); looking for the one before it.")
    if candidates:
        raise ValueError(
            f"none of the {len(candidates)} checkpoints in '{folder}' is whole; move them away to start afresh"
        )
    return None


def whole_or_before(path: str | Path) -> Path:
    """The file itself; for the newest checkpoint of a run, if that is damaged, the newest whole one before it.

    Raises:
        ValueError: if none of several is whole.
    """
    path = Path(path)
    has_older = path.name == NEWEST and predecessor(path, 1).exists()
    found = newest_whole(path.parent) if has_older else None
    return path if found is None else found


def _age(path: Path) -> int:
    """0 for the newest, 1 for the one before; -1 for a file of another purpose."""
    number = path.name.removeprefix("checkpoint").removesuffix(".pt").removeprefix(".")
    if path.name == NEWEST:
        return 0
    return int(number) if number.isdigit() else -1


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunRecord(NamedTuple):
    """What the steps of a run mean.

    Attributes:
        world_size: number of ranks.
        batch_size: structures per rank and batch.
        accumulate_steps: batches per optimiser step.
        structures: of the training set.
        batches_per_epoch: of one rank.
        seed: of the run.
    """

    world_size: int
    batch_size: int
    accumulate_steps: int
    structures: int
    batches_per_epoch: int
    seed: int

    @property
    def effective_batch(self) -> int:
        """Structures per optimiser step."""
        return self.world_size * self.batch_size * self.accumulate_steps


def recorded(config: Mapping[str, Any]) -> RunRecord | None:
    """The record in a checkpoint's config; None for checkpoints of other code."""
    record = config.get(RUN)
    return RunRecord(**record) if record else None


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each change that alters what a resumed run does.

    Args:
        saved: the checkpoint's config.
        here: this run's, with its `RunRecord`.
    """
    before, now = recorded(saved), recorded(here)
    if before and now:
        yield from _record_differences(before, now)
    yield from _epoch_differences(saved, here)
    for part in _PARTS:
        yield from _config_differences(saved.get(part), here.get(part), part)
    objective = (saved.get("task") or {}).get("objective"), (here.get("task") or {}).get("objective")
    yield from _config_differences(*objective, "task.objective")


def changes_schedule(saved: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether learning rates are others than those of the run that wrote a checkpoint.

    Args:
        saved: the checkpoint's config.
        here: this run's.
    """
    return _of_schedule(saved) != _of_schedule(here) or any(True for _ in _epoch_differences(saved, here))


def _of_schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    optim = _flat(config.get("optim"), "optim")
    return {key: optim[key] for key in optim if key.startswith(_SCHEDULE) and "epochs" not in key}


def _epoch_differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Changes of what is counted in epochs; checkpoints keep it in steps, whose number in an epoch may be another."""
    old, new = ((config.get("optim") or {}) for config in (saved, here))
    if "max_epochs" in old and old["max_epochs"] != new["max_epochs"]:
        yield f"optim.max_epochs was {old['max_epochs']} and is {new['max_epochs']}"
    before, now = recorded(saved), recorded(here)
    if not (before and now):
        return
    steps = before.batches_per_epoch, now.batches_per_epoch
    schedules = [_flat(optim.get("scheduler_params"), "optim.scheduler_params") for optim in (old, new)]
    for key in [key for key in schedules[0] if "_epochs" in key and key in schedules[1]]:
        was, value = (schedule[key] / count for schedule, count in zip(schedules, steps, strict=True))
        if abs(was - value) > _ROUNDING / min(steps):
            yield f"{key} was {was:.4g} epochs and is {value:.4g}"


def _record_differences(before: RunRecord, now: RunRecord) -> Iterator[str]:
    if before.structures != now.structures:
        yield (
            f"the training set had {before.structures} structures and has {now.structures}: the rest of this epoch is "
            "another choice of structures"
        )
    for name, text in (("world_size", "ranks"), ("batch_size", "structures per batch"), ("seed", "as seed")):
        if getattr(before, name) != getattr(now, name):
            yield f"the checkpoint was trained with {getattr(before, name)} {text}, this run has {getattr(now, name)}"
    if before.effective_batch != now.effective_batch:
        yield (
            f"a step had {before.effective_batch} structures and has {now.effective_batch}; the learning rate is not "
            "changed with it"
        )
    if before.batches_per_epoch != now.batches_per_epoch:
        yield (
            f"an epoch had {before.batches_per_epoch} steps and has {now.batches_per_epoch}; the run goes on at the "
            "same epoch, and the schedule with it"
        )


def _config_differences(saved: Any, here: Any, where: str) -> Iterator[str]:
    old, new = _flat(saved, where), _flat(here, where)
    for key in old:
        name = key.rpartition(".")[2]
        if key in _COPIED:
            continue
        if key in new and old[key] != new[key] and name not in _MEANINGLESS and "epochs" not in key:
            yield f"{key} was {old[key]!r} and is {new[key]!r}"
    missing = [key for key in old if key not in new]
    added = [key for key in new if key not in old]
    if old and new and (missing or added):
        yield f"{where} lost {missing or 'nothing'} and gained {added or 'nothing'}"


def _flat(block: Any, prefix: str) -> dict[str, Any]:
    """Dotted names of all settings of a block of mappings and lists."""
    if isinstance(block, Mapping):
        items = list(block.items())
    elif isinstance(block, list):
        items = list(enumerate(block))
    else:
        return {} if block is None else {prefix: block}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}")
    return flat
