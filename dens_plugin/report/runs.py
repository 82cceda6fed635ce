"""What a finished or running training left on disk: its folder, history, and the config of its checkpoint."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dens_plugin.checks.method import Method, method_of
from dens_plugin.compat import load_checkpoint
from dens_plugin.training.history import FILE_NAME, read_history

MILLI = 1000.0  # meV in an eV
_CHECKPOINTS = ("best_checkpoint.pt", "checkpoint.pt")  # in the order of preference
_ERRORS = ("_mae", "_relative")  # how names of metrics end
_TIMESTAMP = re.compile(r"^\d{4}(-\d\d){5}(-\d{3})?-?")
_SEED = re.compile(r"[-_ ]?seed[-_ ]?(\d+)", re.IGNORECASE)
_SHARED_BY_SEEDS = ("model", "task", "optim", "outputs", "loss_functions", "dataset", "val_dataset")


class Run(NamedTuple):
    """A run of `DeNSTrainer`.

    Attributes:
        folder: with the history and the checkpoints.
        label: the run's identifier, unique among the runs of a report.
        history: rows of `dens_plugin.training.history`.
        checkpoint: the file with the run's best weights, else its latest; None before the first one.
        config: the checkpoint's; empty without a checkpoint.
        group: the name shared by all seeds of one configuration.
    """

    folder: Path
    label: str
    history: list[dict[str, Any]]
    checkpoint: Path | None
    config: Mapping[str, Any]
    group: str

    @property
    def method(self) -> Method:
        """How it was trained."""
        return method_of(self.config, self.history)

    @property
    def objective(self) -> str:
        """Short name of its objective, and whether it started from weights of another run."""
        return self.method.name + (", fine-tuned" if self.method.is_fine_tuned else "")

    @property
    def is_training(self) -> bool:
        """Whether it printed training steps or, too short for that, saved weights; else it validated others'."""
        return self.checkpoint is not None or any(row["split"] == "train" for row in self.history)

    @property
    def is_comparable(self) -> bool:
        """Whether it learns both energies and forces, whose errors a report compares."""
        return {"energy", "forces"} <= set(self.method.labels)

    @property
    def last_errors(self) -> str:
        """The errors of its last validation as text."""
        row = max((row for row in self.history if row["split"] != "train"), key=lambda row: row["step"], default={})
        return ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key.endswith(_ERRORS)) or "no errors"

    @property
    def seed(self) -> int | None:
        """The seed of the config, else of the label."""
        if self.config:
            return self.config["cmd"]["seed"]
        found = _SEED.search(self.label)
        return int(found[1]) if found else None

    @property
    def data(self) -> str:
        """The run's data sets as text; only runs with the same one can be compared."""
        return _canonical({key: self.config.get(key) for key in ("dataset", "val_dataset")})

    def rows(self, split: str, metric: str) -> list[dict[str, Any]]:
        """The history's rows of ``train`` or ``val`` that hold a metric, by step."""
        rows = (row for row in self.history if row["split"] == split and metric in row)
        return sorted(rows, key=lambda row: row["step"])

    def minutes(self, time: float) -> float:
        """Wall-clock minutes from the run's start, interruptions included, to a time in unix seconds."""
        return (time - _start(self.history)) / 60


def find_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read the runs at some paths.

    Args:
        paths: checkpoint folders of runs, or folders with ``checkpoints/`` that hold one or more.

    Returns:
        The seeds of a configuration next to each other.

    Raises:
        FileNotFoundError: for a path that does not exist or holds no run's history.
        ValueError: for a broken checkpoint, or where no run has a history with rows; one without is left out.
    """
    folders = [folder for path in paths for folder in _folders(Path(path))]
    histories = _histories({folder.resolve(): folder for folder in folders}.values())
    folders = list(histories)
    configs = [_config(folder) for folder in folders]
    labels = _unique([_identifier(*pair) for pair in zip(folders, configs, strict=True)], folders)
    groups = _groups(labels, configs)
    runs = [
        Run(folder, label, histories[folder], _checkpoint(folder), config, group)
        for folder, label, config, group in zip(folders, labels, configs, groups, strict=True)
    ]
    return sorted(runs, key=lambda run: (groups.index(run.group), run.label))


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group -> its runs, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def seed_of(run: Run) -> int | str:
    """A run's seed; a run whose seed nobody knows has one of its own."""
    return run.label if run.seed is None else run.seed


def seeds_of(runs: Iterable[Run]) -> dict[int | str, list[Run]]:
    """Seed -> its runs, one in general."""
    seeds: dict[int | str, list[Run]] = {}
    for run in runs:
        seeds.setdefault(seed_of(run), []).append(run)
    return seeds


def only_run(folder: str | Path, option: str) -> Run:
    """Read the run of a folder that must not hold several.

    Args:
        folder: as for `find_runs`.
        option: what the folder was given for, such as ``--splits val_id``.

    Raises:
        FileNotFoundError: as `find_runs`.
        ValueError: as `find_runs`, and for a folder of several runs.
    """
    runs = find_runs([folder])
    if len(runs) > 1:
        raise ValueError(f"{option}={Path(folder)} holds {len(runs)} runs: give the checkpoint folder of one")
    return runs[0]


def _folders(path: Path) -> list[Path]:
    """The checkpoint folders that a path stands for."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder '{path}'; give RUN_DIR or RUN_DIR/checkpoints/<timestamp-identifier>"
        )
    if (path / FILE_NAME).is_file():
        return [path]
    inside = path if path.name == "checkpoints" else path / "checkpoints"
    found = sorted(history.parent for history in inside.glob(f"*/{FILE_NAME}"))
    if not found:
        raise FileNotFoundError(
            f"no {FILE_NAME} in '{path}' or '{inside}/*'; dens_plugin.DeNSTrainer writes it beside the checkpoints, "
            "from the first printed step on: wait for it, or give another folder"
        )
    return found


def _histories(folders: Iterable[Path]) -> dict[Path, list[dict[str, Any]]]:
    """Folder -> history; a run without one is left out with a warning as long as there is another."""
    found: dict[Path, list[dict[str, Any]]] = {}
    problems = []
    for folder in folders:
        try:
            found[folder] = _history(folder)
        except ValueError as error:  # noqa: PERF203  (a few runs)
            problems.append(error)
    if problems and not found:
        raise problems[0]
    for problem in problems:
        logging.warning(f"Left out a run: {problem}.")
    return found


def _history(folder: Path) -> list[dict[str, Any]]:
    history = read_history(folder / FILE_NAME)
    if not history:
        raise ValueError(
            f"'{folder / FILE_NAME}' has no rows yet; wait for the run's first printed step, or leave it out"
        )
    return history


def _checkpoint(folder: Path) -> Path | None:
    return next((folder / name for name in _CHECKPOINTS if (folder / name).is_file()), None)


def _config(folder: Path) -> Mapping[str, Any]:
    """The config inside a run's checkpoint; empty where there is none yet."""
    checkpoint = _checkpoint(folder)
    if checkpoint is None:
        return {}
    try:
        return load_checkpoint(checkpoint)["config"]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"the checkpoint '{checkpoint}' cannot be used ({error}); move it out of the folder, and the run is "
            "reported from its other checkpoint, or by its curves alone"
        ) from error


def _identifier(folder: Path, config: Mapping[str, Any]) -> str:
    """The name that the user gave, else what follows the time in the folder's name."""
    return config.get("cmd", {}).get("identifier") or _TIMESTAMP.sub("", folder.name) or folder.name


def _unique(labels: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Labels told apart by the folder's name, and by a number where that is the same too."""
    names = [folder.name if labels.count(label) > 1 else label for label, folder in zip(labels, folders, strict=True)]
    return [
        f"{name} ({names[:at].count(name) + 1})" if names.count(name) > 1 else name for at, name in enumerate(names)
    ]


def _groups(labels: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each run the name of its configuration: the label without its seed, told apart where configs differ.

    A run without a checkpoint goes with the runs of the same name.
    """
    names = [_SEED.sub("", label).strip(" -_") or label for label in labels]
    digests = [_canonical(_without_seeds(config)) if config else None for config in configs]
    by_name = {name: digest for name, digest in zip(names, digests, strict=True) if digest is not None}
    keys = [digest or by_name.get(name, name) for name, digest in zip(names, digests, strict=True)]
    name_of: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        if key not in name_of:
            taken = sum(other == name or other.startswith(f"{name} #") for other in name_of.values())
            name_of[key] = f"{name} #{taken + 1}" if taken else name
    return [name_of[key] for key in keys]


def _without_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    """What seeds of one configuration have in common; each may start from a seed of one pre-training."""
    shared = {key: config.get(key) for key in _SHARED_BY_SEEDS}
    start = ((config.get("task") or {}).get("warm_start") or {}).get("path")
    if start is not None:
        source = [_SEED.sub("", _TIMESTAMP.sub("", part)) for part in Path(str(start)).parts]
        shared["task"] = {**config["task"], "warm_start": {**config["task"]["warm_start"], "path": source}}
    return shared


def _canonical(value: Any) -> str:
    """Text that is equal for equal configs; objects in it, as a scheduler's function, count by their type."""
    return json.dumps(value, sort_keys=True, default=lambda other: type(other).__name__)


def _start(history: Sequence[Mapping[str, Any]]) -> float:
    """Unix seconds at step 0, at the pace of the first rows of training; the first row's time where there is one."""
    rows = sorted((row for row in history if row["split"] == "train"), key=lambda row: row["step"])[:2]
    if len(rows) < 2:
        return min(row["time"] for row in history)
    first, second = rows
    pace = (second["time"] - first["time"]) / (second["step"] - first["step"])
    return first["time"] - max(pace, 0.0) * first["step"]
