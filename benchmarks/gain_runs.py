"""The runs of `gains.py`: their data, configs and folders, by `dens data molecules` and `dens train`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from gain_methods import METHODS, NETWORKS, SOURCES, Method, Pretraining, model, pretrained_model
from gain_tables import Cell

from dens_plugin.training.earlier_runs import unfinished

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LABELS = ("energy", "forces")
_BATCH, _VALIDATED, _EVALUATIONS, _WARM_UP = 8, 50, 8, 200
_UNLABELLED = ["--energies-only", "--mixed", "--split", "0.95,0.05"]


class Study:
    """A folder of runs, and what they are made from.

    Args:
        folder: of all of them.
        data: with the files of molecules.
        methods: by their names in `Cell`.
    """

    def __init__(self, folder: Path, data: Path, methods: Mapping[str, Method] = METHODS) -> None:
        self.folder, self.data, self.methods = folder.resolve(), data.resolve(), methods

    def require_files(self, cells: Iterable[Cell]) -> None:
        """Raise ValueError for a cell without its files of molecules, those of a pre-training included."""
        for cell in cells:
            pretraining = self.methods[cell.method].pretraining
            for file in (*self._files(cell), *(self._unlabelled(pretraining) if pretraining else ())):
                if not file.is_file():
                    raise ValueError(f"{cell.name} needs '{file}', which does not exist; see --data and --molecules")

    def run(self, cell: Cell) -> bool:
        """Train unless this was done or is being done; what goes wrong stands in the run's log.

        Returns:
            Whether nothing went wrong.
        """
        home = dict(homes(self.folder)).get(cell, self.folder / "runs" / cell.name)
        with _locked(home, wait=False) as is_ours:
            if not is_ours or is_finished(home):
                return True
            status = self._trained(cell, home)
            print(f"{cell.name}: exit {status}" + (f", see '{home / 'log.txt'}'" if status else ""), flush=True)
            return status == 0

    def _trained(self, cell: Cell, home: Path) -> int:
        method = self.methods[cell.method]
        with (home / "log.txt").open("a") as log:
            try:
                start = method.pretraining and self.pretrained(cell, method.pretraining, log)
                self._frames(cell, log)
                status = _train(home, self.config(cell, start), cell.seed, log)
            except RuntimeError as error:
                log.write(f"{error}\n")
                status = 1
            log.write(f"exit {status}\n")
        return status

    def config(self, cell: Cell, start: Path | None = None) -> dict[str, Any]:
        """A run's config: shared parts of this package, its data, its method, and a schedule of its steps.

        Args:
            cell: which run.
            start: the checkpoint to take the weights from.
        """
        method, network, source = self.methods[cell.method], NETWORKS[cell.network], source_of(self.folder, cell)
        normalizer = {name: {"file": str(source / f"normalizer_{name}.npz")} for name in LABELS}
        warm_start = {"warm_start": {"path": str(start), "new_heads": ["energy"]}} if start else {}
        return {
            "includes": [str(CONFIGS / part) for part in ("base_molecules.yml", f"backbone/{network.settings}.yml")],
            "model": model(network, method),
            "dataset": {
                "train": {"format": "lmdb", "src": str(source / "train"), "transforms": {"normalizer": normalizer}},
                "val": {"src": str(source / "val")},
            },
            "task": {"objective": dict(method.objective), **warm_start},
            "optim": {
                **_schedule(cell.steps, -(-cell.frames // _BATCH)),
                "batch_size": _BATCH,
                "clip_grad_norm": 2000,
                **method.optim,
            },
        }

    def pretrained(self, cell: Cell, pretraining: Pretraining, log: Any) -> Path:
        """The checkpoint of the pre-training that a cell starts from, which is trained unless this was done."""
        home = pretraining_home(self.folder, cell, pretraining)
        with _locked(home):
            if not is_finished(home):
                sources = [
                    self._made(file, f"unlabelled-{file.name.split('.')[0]}", _UNLABELLED, log)
                    for file in self._unlabelled(pretraining)
                ]
                with (home / "log.txt").open("a") as own_log:
                    config = pretraining_config(cell.network, pretraining, sources)
                    own_log.write(f"exit {_train(home, config, cell.seed, own_log)}\n")
        if not is_finished(home):
            raise RuntimeError(f"the pre-training failed; see '{home / 'log.txt'}'")
        log.write(f"Weights of {home.name}: pre-trained.\n")
        return best_checkpoint(home)

    def _frames(self, cell: Cell, log: Any) -> None:
        train, test = self._files(cell)
        split = ["--split", f"{cell.frames},{_VALIDATED}", "--seed", cell.seed]
        self._made(train, source_of(self.folder, cell).name, ["--test", test, *split], log)

    def _files(self, cell: Cell) -> tuple[Path, Path]:
        """To train and validate on, and to test on."""
        return tuple(self.data / f"rmd17_{cell.molecule}_{part}.extxyz.xz" for part in ("train", "test"))

    def _unlabelled(self, pretraining: Pretraining) -> list[Path]:
        return [self.data / f"{name}.extxyz.xz" for name in SOURCES[pretraining.molecules]]

    def _made(self, file: Path, name: str, options: Sequence[Any], log: Any) -> Path:
        """LMDBs of a file; another process that wants the same waits."""
        source = self.folder / "data" / name
        with _locked(self.folder / "data" / f".{name}"):
            if not (source / "manifest.json").exists():
                status = _dens(["data", "molecules", file, source, *options, "--quiet"], log)
                if status:
                    raise RuntimeError(f"`dens data molecules {file}` ended with {status}")
        return source


def cell_of(molecule: str, frames: int, network: str, method: str, seed: int, steps: int) -> Cell:
    """A cell whose steps are those of whole epochs."""
    each_epoch = -(-frames // _BATCH)
    return Cell(molecule, frames, network, method, seed, epochs_of(steps, each_epoch) * each_epoch)


def source_of(folder: Path, cell: Cell) -> Path:
    """The folder of a run's frames."""
    return folder / "data" / f"{cell.molecule}-{cell.frames}-s{cell.seed}"


def pretraining_home(folder: Path, cell: Cell, pretraining: Pretraining) -> Path:
    """The folder of a pre-training, which cells share."""
    settings = "-".join(map(str, pretraining))
    return folder / "pretrained" / f"{cell.network}-{settings}-s{cell.seed}"


def pretraining_config(network: str, pretraining: Pretraining, sources: Sequence[Path]) -> dict[str, Any]:
    """A config of noise alone, on structures of other molecules."""
    structures = sum(json.loads((each / "manifest.json").read_text())["counts"]["train"] for each in sources)
    parts = ("base_pretrain.yml", f"backbone/{NETWORKS[network].settings}.yml")
    return {
        "includes": [str(CONFIGS / part) for part in parts],
        "model": pretrained_model(NETWORKS[network]),
        "dataset": {
            "train": {"format": "joined_lmdb", "src": [str(each / "train") for each in sources]},
            "val": {"format": "joined_lmdb", "src": [str(each / "val") for each in sources]},
        },
        "task": {"objective": {"name": "pretrain", "sigma": pretraining.sigma, "reduction": "mean"}},
        "evaluation_metrics": {"primary_metric": "noise_mae"},
        "optim": {
            **_schedule(pretraining.steps, -(-structures // pretraining.batch_size)),
            "batch_size": pretraining.batch_size,
            "clip_grad_norm": 10,
        },
    }


def _schedule(steps: int, each_epoch: int) -> dict[str, Any]:
    epochs = epochs_of(steps, each_epoch)
    return {
        "eval_batch_size": _VALIDATED,
        "num_workers": 0,
        "lr_initial": 1e-3,
        "optimizer": "AdamW",
        "optimizer_params": {"weight_decay": 1e-6},
        "scheduler": "LambdaLR",
        "scheduler_params": {
            "lambda_type": "cosine",
            "warmup_factor": 5e-3,
            "warmup_epochs": _WARM_UP / each_epoch,
            "lr_min_factor": 2e-3,
        },
        "ema_decay": 0.998,  # no warm-up: of the first weights nothing may be left at the end
        "max_epochs": epochs,
        "eval_every": each_epoch * max(1, epochs // _EVALUATIONS),
    }


def epochs_of(steps: int, each_epoch: int) -> int:
    """How many epochs of so many steps come closest."""
    return max(1, round(steps / each_epoch))


def homes(folder: Path) -> Iterator[tuple[Cell, Path]]:
    """All runs that were begun, with their folders; earlier ones do not say their steps in their names."""
    for home in sorted((folder / "runs").glob("*-*-*-*-s*")):
        if (home / "config.yml").exists():
            each_epoch = -(-int(home.name.split("-")[1]) // _BATCH)
            epochs = yaml.safe_load((home / "config.yml").read_text())["optim"]["max_epochs"]
            yield Cell.of(home.name, epochs * each_epoch), home


def is_finished(home: Path) -> bool:
    """Whether a run's log ends well."""
    log = home / "log.txt"
    return log.is_file() and log.read_text(errors="replace").rstrip().endswith("exit 0")


def best_checkpoint(home: Path) -> Path:
    """Of a run that is finished, one way or the other; a path that does not exist if it failed."""
    found = sorted(home.glob("checkpoints/*/best_checkpoint.pt"))
    return found[-1] if found else home / "checkpoints" / "best_checkpoint.pt"


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Within the context, no other thread or process has this folder; or, without waiting, whether none has."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _train(home: Path, config: Mapping[str, Any], seed: int, log: Any) -> int:
    (home / "config.yml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    options = ["--run-dir", home, "--identifier", home.name, "--seed", seed, "--print-every", 200, "--cpu"]
    if unfinished(home, home.name, config["optim"]["max_epochs"]) is not None:
        options.append("--resume")
    return _dens(["train", "--config-yml", home / "config.yml", *options], log)


def _dens(arguments: Sequence[Any], log: Any) -> int:
    log.flush()
    command = [sys.executable, "-m", "dens_plugin.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
