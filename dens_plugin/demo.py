"""What the package does, in ten minutes: the main job on slabs, and methods against the baseline on a real molecule."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from dens_plugin.config_files import packaged_folder
from dens_plugin.data import oc20, synthetic
from dens_plugin.data.molecules import command as molecules
from dens_plugin.report import report
from dens_plugin.settings import count

_SLABS = {"train": "train", "val": "val_id", "test": "val_ood"}
_MOLECULE = "malonaldehyde"
_UNLABELLED = {"benzene": "190,10", "toluene": "190,10", "salicylic": "190,10", "uracil": "290,10"}  # and their splits
_METHODS = ("s2ef", "dens", "pretrained")
_TO_ONE = 7  # passes over labelled frames for one over unlabelled ones, which are nine times as many
_AT_A_TIME = 2  # runs on the molecule, a core each
_SECONDS_BETWEEN_LINES = 5.0


class Training(NamedTuple):
    """A run of the demo.

    Attributes:
        config: ``demo_{config}.yml``, among the package's experiments.
        name: of the run and its log.
        data: split -> the folder of its LMDB, or several.
        folder: of the run.
        seed: of weights and noise.
        epochs: None for the config's.
        options: of the command line, besides.
    """

    config: str
    name: str
    data: Mapping[str, Path | Sequence[Path]]
    folder: Path
    seed: int
    epochs: int | None = None
    options: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Path | None:
        """The best one; None before there is one."""
        return next(self.folder.glob(f"checkpoints/*-{self.name}/best_checkpoint.pt"), None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dens demo`."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for data, runs and reports")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the slabs (default: 1)")
    parser.add_argument("--systems", type=int, default=12, help="relaxations of slabs to generate (default: 12)")
    parser.add_argument("--molecule-epochs", type=int, help="passes over the molecule's frames (default: 360)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method on the molecule (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="the first one, and that of the slabs")


def run(args: argparse.Namespace) -> None:
    """Run `dens demo`; steps that an earlier call finished are not done again.

    Raises:
        ValueError: for numbers of nothing, before anything is made; if a training fails.
    """
    _require_possible(args)
    started = time.monotonic()
    print("[1/5] Relaxations of random slabs with adsorbates (EMT), to LMDBs", flush=True)
    raw, lmdb = args.out / "raw", args.out / "lmdb"
    if not raw.exists():
        synthetic.generate(raw, systems=args.systems, seed=args.seed)
    for folder in _SLABS.values():
        oc20.convert(raw / folder, lmdb / folder, workers=2)
    print("[2/5] The main job: EquiformerV2 with DeNS on slabs", flush=True)
    slabs = {split: lmdb / folder for split, folder in _SLABS.items()}
    _train([Training("dens", "dens", slabs, args.out / "slabs", args.seed, args.epochs)])
    print(f"[3/5] Revised MD17: a hundred labelled frames of {_MOLECULE}, others without labels", flush=True)
    frames, others = args.out / _MOLECULE, {name: args.out / "unlabelled" / name for name in _UNLABELLED}
    if not frames.exists():
        _call(molecules, [f"shipped:{_MOLECULE}", str(frames), "--split", "100,50"])
    for name, folder in others.items():
        if not folder.exists():
            with contextlib.redirect_stdout(io.StringIO()):  # references and normalisers, which nothing needs here
                _call(molecules, [f"shipped:{name}", str(folder), "--energies-only", "--split", _UNLABELLED[name]])
    print(f"[4/5] PaiNN without and with DeNS, and pre-trained by denoising: {args.seeds} seeds each", flush=True)
    runs = args.out / "runs"
    pretrainings = _pretraining(args, list(others.values()))
    _train_all(pretrainings)
    splits = {split: frames / split for split in ("train", "val", "test")}
    for method in _METHODS:
        _train_all(
            [
                Training(
                    f"molecule_{method}",
                    f"{method}_seed{one.seed}",
                    splits,
                    runs,
                    one.seed,
                    args.molecule_epochs,
                    (f"--task.warm_start.path={one.checkpoint}",) if method == "pretrained" else (),
                )
                for one in pretrainings
            ]
        )
    print("[5/5] Reports", flush=True)
    for folder, name in ((args.out / "slabs", "slabs_report"), (runs, "report")):
        _call(report, [str(folder), "--out", str(args.out / name), "--split", "test"])
    print("DeNS takes longer to pay than a demo has: it gained 14% in 20,000 steps (--molecule-epochs 1538).")
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes: open {args.out / 'report' / 'report.html'}")


def _require_possible(args: argparse.Namespace) -> None:
    for name in ("epochs", "systems", "molecule_epochs", "seeds"):
        value = getattr(args, name)
        if value is not None:
            count(value, f"--{name.replace('_', '-')}", least=1)
    count(args.seed, "--seed", least=0)


def _pretraining(args: argparse.Namespace, folders: Sequence[Path]) -> list[Training]:
    """One for each seed."""
    epochs = None if args.molecule_epochs is None else -(-args.molecule_epochs // _TO_ONE)
    data = {split: [folder / split for folder in folders] for split in ("train", "val")}
    return [
        Training("molecule_pretrain", f"pretrain_seed{seed}", data, args.out / "pretraining", seed, epochs)
        for seed in range(args.seed, args.seed + args.seeds)
    ]


def _train_all(trainings: Sequence[Training]) -> None:
    for first in range(0, len(trainings), _AT_A_TIME):
        _train(trainings[first : first + _AT_A_TIME])


def _train(trainings: Sequence[Training]) -> None:
    """Train side by side, each in a process of its own, as a user would; the first one's progress is shown."""
    todo = [one for one in trainings if one.checkpoint is None]
    if not todo:
        print("  already trained")
        return
    logs = [one.folder / f"{one.name}.log" for one in todo]
    with contextlib.ExitStack() as stack:
        started = []
        for one, log in zip(todo, logs, strict=True):
            log.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(log.open("w", buffering=1))
            threads = {} if len(todo) == 1 else {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                _command(one), stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **threads}
            )
            stack.callback(process.terminate)
            started.append(process)
        _follow(logs[0], started[0])
        failed = [log for log, process in zip(logs, started, strict=True) if process.wait()]
    if failed:
        raise ValueError(f"a training run failed; its log is {failed[0]}")


def _command(one: Training) -> list[str]:
    config = packaged_folder() / "experiment" / f"demo_{one.config}.yml"
    epochs = [] if one.epochs is None else [f"--optim.max_epochs={one.epochs}"]
    return [
        *(sys.executable, "-m", "dens_plugin.cli", "train", "--cpu", "--config-yml", str(config)),
        *("--run-dir", str(one.folder), "--identifier", one.name, "--seed", str(one.seed), "--print-every", "20"),
        *(f"--dataset.{split}.src={_source(folders)}" for split, folders in one.data.items()),
        *epochs,
        *one.options,
    ]


def _source(folders: Path | Sequence[Path]) -> str:
    return str(folders) if isinstance(folders, Path) else str([str(folder) for folder in folders])


def _follow(log: Path, process: subprocess.Popen) -> None:
    """Print what a run logs of its progress until it ends, at most every few seconds."""
    with log.open() as lines:
        shown = 0.0
        while process.poll() is None:
            for line in lines:
                if time.monotonic() - shown > _SECONDS_BETWEEN_LINES and (text := _progress(line)):
                    print("  " + text[: int(os.environ.get("COLUMNS", "160")) - 2], flush=True)
                    shown = time.monotonic()
            time.sleep(0.2)


def _progress(line: str) -> str:
    """What is logged of a step, without the time of day; nothing of another line."""
    found = re.match(r"[\d:]{8} (.*(?:forces|noise)_mae.*)", line)
    return found[1] if found else ""


def _call(command: ModuleType, arguments: list[str]) -> None:
    """Run one of the package's commands."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(arguments))
