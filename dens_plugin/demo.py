"""The main job in miniature: synthetic data, LMDBs, a small EquiformerV2 with and without DeNS, a report."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from dens_plugin.config_files import packaged_folder
from dens_plugin.data import oc20, synthetic
from dens_plugin.report import report

_SPLITS = {"train": "train", "val": "val_id", "test": "val_ood"}
_OBJECTIVES = ("s2ef", "dens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dens demo`."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for data, runs and report")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training set (default: 2)")
    parser.add_argument("--systems", type=int, default=24, help="relaxations to generate (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the weights and the noise")


def run(args: argparse.Namespace) -> None:
    """Run `dens demo`; steps that an earlier call finished are not done again."""
    started = time.monotonic()
    print("[1/4] Relaxations of random slabs with adsorbates (EMT)", flush=True)
    raw = args.out / "raw"
    if not raw.exists():
        synthetic.generate(raw, systems=args.systems, seed=args.seed)
    print("[2/4] Raw frames to LMDBs", flush=True)
    for folder in _SPLITS.values():
        oc20.convert(raw / folder, args.out / "lmdb" / folder, workers=2)
    for number, objective in enumerate(_OBJECTIVES):
        print(f"[3/4] Training {number + 1} of {len(_OBJECTIVES)}: {objective}", flush=True)
        _train(objective, args)
    print("[4/4] Report", flush=True)
    _report(args)
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes: open {args.out / 'report' / 'report.html'}")


def _train(objective: str, args: argparse.Namespace) -> None:
    """Train in a process of its own, as a user would, and keep its log."""
    run_dir = args.out / "runs"
    if list(run_dir.glob(f"checkpoints/*-{objective}/best_checkpoint.pt")):
        print("  already trained")
        return
    command = [
        *(sys.executable, "-m", "dens_plugin.cli", "train", "--cpu", "--seed", str(args.seed)),
        *("--config-yml", str(packaged_folder() / "experiment" / f"demo_{objective}.yml")),
        *("--run-dir", str(run_dir), "--identifier", objective, "--print-every", "20"),
        *(f"--dataset.{split}.src={args.out / 'lmdb' / folder}" for split, folder in _SPLITS.items()),
        f"--optim.max_epochs={args.epochs}",
    ]
    log = args.out / f"train_{objective}.log"
    with (
        log.open("w", buffering=1) as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            _show(line)
    if process.returncode:
        raise ValueError(f"training with objective '{objective}' failed; its log is {log}")


def _show(line: str) -> None:
    """Print what is logged of a step or an evaluation, without the time of day."""
    found = re.match(r"[\d:]{8} (.*forces_mae: .*)", line)
    if found:
        print("  " + found[1][: _width()], flush=True)


def _width() -> int:
    return int(os.environ.get("COLUMNS", "160")) - 2


def _report(args: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    report.run(parser.parse_args([str(args.out / "runs"), "--out", str(args.out / "report"), "--split", "test"]))
