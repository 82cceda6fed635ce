"""How structures are relaxed: the block ``task.relax``, or fairchem's keys, which say the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dens_plugin.settings import mapping, number, reject_unknown, suggestion

TRAJECTORIES = ("none", "ends", "full")

_HOST_KEYS = {"relaxation_steps": "steps", "relaxation_fmax": "fmax"}
_HOST_OPTIMIZER = ("maxstep", "memory", "damping", "alpha")
_UNSUPPORTED = {
    "relax_cell": "cells stay as they are: the models of this package predict no stress",
    "relax_volume": "cells stay as they are: the models of this package predict no stress",
    "num_relaxation_batches": "make a smaller data set for dataset.relax.src",
}
_POSITIVE = ("fmax", "maxstep", "memory", "damping", "alpha")
_WHOLE = ("steps", "memory", "batch_size")


@dataclass(frozen=True)
class RelaxationSettings:
    """L-BFGS as the paper runs it for IS2RE, and where the result goes.

    Attributes:
        steps: the most steps a structure takes.
        fmax: eV/Å; a structure is relaxed when no free atom's force is as long as this.
        maxstep: Å, the longest move of an atom, before damping.
        memory: how many steps the Hessian's estimate remembers.
        damping: by which every move is multiplied.
        alpha: eV/Å², the first guess of the Hessian.
        batch_size: structures at a time; ``optim.eval_batch_size`` where not given.
        out: the folder; derived from data, model and these settings where not given, so that the same command goes on.
        trajectory: which frames are also written for ASE: ``none``, ``ends`` (first and last) or ``full``.
    """

    steps: int = 300
    fmax: float = 0.02
    maxstep: float = 0.2
    memory: int = 50
    damping: float = 1.2
    alpha: float = 80.0
    batch_size: int = 1
    out: Path | None = None
    trajectory: str = "none"

    def __post_init__(self) -> None:
        for name in (*_POSITIVE, *_WHOLE):
            _require_number(name, getattr(self, name), positive=name != "steps", whole=name in _WHOLE)
        if self.trajectory not in TRAJECTORIES:
            raise ValueError(
                f"task.relax.trajectory is {self.trajectory!r}; {suggestion(str(self.trajectory), TRAJECTORIES)}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RelaxationSettings:
        """The settings that a config asks for.

        Args:
            config: with ``task`` and ``optim``, as fairchem's trainer keeps it.

        Raises:
            ValueError: for an unknown or impossible setting, or one that is given in both ways, naming the key.
        """
        task, optim = config.get("task") or {}, config.get("optim") or {}
        block = _block(task)
        for name in (*_POSITIVE, *_WHOLE):
            if name in block:
                block[name] = number(block[name], f"task.relax.{name}")
        if block.get("out") is not None:
            block["out"] = Path(block["out"])
        block.setdefault("batch_size", optim.get("eval_batch_size", optim.get("batch_size", 1)))
        return cls(**block)

    @property
    def optimizer(self) -> dict[str, Any]:
        """The arguments of fairchem's L-BFGS."""
        return {name: getattr(self, name) for name in _HOST_OPTIMIZER}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything on which the result depends."""
        names = ("steps", "fmax", *_HOST_OPTIMIZER, "trajectory")
        return {name: getattr(self, name) for name in names}


def _block(task: Mapping[str, Any]) -> dict[str, Any]:
    refused = [key for key in _UNSUPPORTED if task.get(key)]
    if refused:
        raise ValueError(f"task.{refused[0]} is not supported in relaxations; {_UNSUPPORTED[refused[0]]}")
    theirs = [key for key in ("relax_opt", *_HOST_KEYS) if task.get(key) is not None]
    if "relax" not in task:
        return _from_host(task)
    if theirs:
        raise ValueError(f"both task.relax and task.{theirs[0]} are set; keep one of them")
    block = mapping(task["relax"] or {}, "task.relax")
    reject_unknown(block, [field.name for field in dataclasses.fields(RelaxationSettings)], "task.relax")
    return block


def _from_host(task: Mapping[str, Any]) -> dict[str, Any]:
    """fairchem's layout in our words; what it leaves out has the paper's value, not fairchem's."""
    block = {ours: task[theirs] for theirs, ours in _HOST_KEYS.items() if task.get(theirs) is not None}
    options = mapping(task.get("relax_opt") or {}, "task.relax_opt")
    reject_unknown(options, ("name", "traj_dir", *_HOST_OPTIMIZER), "task.relax_opt")
    if str(options.pop("name", "lbfgs")).lower() != "lbfgs":
        raise ValueError(f"task.relax_opt.name is {task['relax_opt']['name']!r}; the only optimizer is 'lbfgs'")
    folder = options.pop("traj_dir", None)
    if folder is not None:
        block |= {"out": folder, "trajectory": "full" if task.get("save_full_traj", True) else "ends"}
    return block | options


def _require_number(name: str, value: Any, *, positive: bool, whole: bool) -> None:
    is_number = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not is_number or not 0 <= value < math.inf or (positive and value == 0):
        kind = f"{'whole ' if whole else ''}number {'above 0' if positive else 'of 0 or more'}"
        raise ValueError(f"task.relax.{name} must be a {kind}, got {value!r}")
