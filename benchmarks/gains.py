"""Where denoising gains on molecules, and how much: methods x labelled frames x networks x molecules x seeds.

    python benchmarks/gains.py run gains --molecules ethanol malonaldehyde --methods s2ef dens --steps 6000
    python benchmarks/gains.py table gains                        # what is finished: a table, a plot, JSON

``run`` goes through `dens train` and `dens data molecules`, one run after the other, or as many at a time as ``--jobs``
says; each has a folder with its config, its log and its checkpoints. What is finished is skipped and what was
interrupted starts again, so that the same command goes on where it was stopped. The files of molecules are revised
MD17's, as ``rmd17_<molecule>_{train,test}.extxyz.xz`` in ``--data``. A seed decides which frames have labels, and the
first weights. Settings are those of `configs` for light networks; validation chooses the weights, and ``table`` reads
the test set once for each finished run and keeps what it found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from machine import hardware

from dens_plugin.report.predictions import predict
from dens_plugin.report.runs import find_runs

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
_DENS = {
    "name": "dens",
    "prob": 0.5,
    "corrupt_ratio": 0.5,
    "sigma": 0.05,
    "coefficient": 5,
    "decay_to": 0,
    "denominators": "own",
}
METHODS: dict[str, dict[str, Any]] = {
    "s2ef": {"name": "s2ef"},
    "dens": _DENS,
    "dens_quarter": _DENS | {"prob": 0.25, "corrupt_ratio": 0.25},
    "dens_copy": _DENS | {"keep_labels": True},
    "dens_no_encoding": _DENS | {"encode_forces": False},
    "dropped_labels": _DENS | {"only_drop_labels": True},
    "noisy_nodes": {"name": "noisy_nodes", "sigma": 0.005, "coefficient": 0.1, "keep_labels": True},
}
NETWORKS = {"painn": "painn_molecule", "torchmd_et": "torchmd_et_md17"}  # configs of model and backbone
_BATCH, _VALIDATED, _EVALUATIONS, _WARM_UP = 8, 50, 8, 200
_FOUND = "test.json"


class Cell(NamedTuple):
    """One run.

    Attributes:
        molecule: of revised MD17.
        frames: with labels, for training.
        network: of `NETWORKS`.
        method: of `METHODS`.
        seed: of frames and first weights.
    """

    molecule: str
    frames: int
    network: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.molecule}-{self.frames}-{self.network}-{self.method}-s{self.seed}"

    @classmethod
    def of(cls, name: str) -> Cell:
        """By the name of its folder."""
        molecule, frames, network, method, seed = name.split("-")
        return cls(molecule, int(frames), network, method, int(seed.removeprefix("s")))


class Finished(NamedTuple):
    """Errors of a run's best weights on the test frames, in meV and meV/Å, and what its training left.

    Attributes:
        cell: which run.
        forces: mean absolute error of components.
        energy: mean absolute error.
        steps: of its optimiser.
        noise: error on a corrupted copy of the validation frames over that of predicting zero; None without denoising.
    """

    cell: Cell
    forces: float
    energy: float
    steps: int
    noise: float | None


def main(argv: Sequence[str] | None = None) -> None:
    """Run, or say what came out."""
    args = _arguments(argv)
    if args.command == "run":
        cells = [Cell(*each) for each in itertools.product(*(getattr(args, key) for key in _AXES))]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda cell: run(cell, args.folder, args.data.resolve(), args.steps), cells))
    else:
        report(args.folder, args.out)


def run(cell: Cell, folder: Path, data: Path, steps: int) -> None:
    """Train unless this was done; what goes wrong stands in the run's log."""
    home = (folder / "runs" / cell.name).resolve()
    if is_finished(home):
        return
    home.mkdir(parents=True, exist_ok=True)
    source = folder.resolve() / "data" / f"{cell.molecule}-{cell.frames}-s{cell.seed}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (home / "log.txt").open("w") as log:
        if not (source / "manifest.json").exists():
            files = [data / f"rmd17_{cell.molecule}_{part}.extxyz.xz" for part in ("train", "test")]
            split = f"{cell.frames},{_VALIDATED}"
            options = ["--test", files[1], "--split", split, "--seed", cell.seed, "--quiet"]
            _dens(["data", "molecules", files[0], source, *options], log, environment)
        (home / "config.yml").write_text(yaml.safe_dump(config(cell, source, steps), sort_keys=False))
        options = ["--run-dir", home, "--identifier", cell.name, "--seed", cell.seed, "--print-every", 200, "--cpu"]
        status = _dens(["train", "--config-yml", home / "config.yml", *options], log, environment)
        log.write(f"exit {status}\n")
    print(f"{cell.name}: exit {status}", flush=True)


def config(cell: Cell, source: Path, steps: int) -> dict[str, Any]:
    """A run's config: shared parts of this package, its data, its method, and a schedule of so many steps."""
    model = f"model/{cell.network}{'' if cell.method == 's2ef' else '_dens'}.yml"
    parts = ["base_molecules.yml", model, f"backbone/{NETWORKS[cell.network]}.yml"]
    each_epoch = -(-cell.frames // _BATCH)
    epochs = round(steps / each_epoch)
    normalizer = {name: {"file": str(source / f"normalizer_{name}.npz")} for name in ("energy", "forces")}
    return {
        "includes": [str(CONFIGS / part) for part in parts],
        "dataset": {
            "train": {"format": "lmdb", "src": str(source / "train"), "transforms": {"normalizer": normalizer}},
            "val": {"src": str(source / "val")},
        },
        "task": {"objective": METHODS[cell.method]},
        "optim": {
            "batch_size": _BATCH,
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
            "clip_grad_norm": 2000,
            "max_epochs": epochs,
            "eval_every": each_epoch * max(1, epochs // _EVALUATIONS),
        },
    }


def is_finished(home: Path) -> bool:
    """Whether a run's log ends well."""
    log = home / "log.txt"
    return log.is_file() and log.read_text(errors="replace").rstrip().endswith("exit 0")


def finished(folder: Path) -> Iterator[Finished]:
    """All runs that are, in the order of their names; the test set is read for those that it was not read for yet."""
    for home in sorted((folder / "runs").iterdir()):
        if is_finished(home):
            cell = Cell.of(home.name)
            known = home / _FOUND
            if not known.exists():
                known.write_text(
                    json.dumps(_tested(home, folder / "data" / f"{cell.molecule}-{cell.frames}-s{cell.seed}"))
                )
            yield Finished(cell, **json.loads(known.read_text()))


def _tested(home: Path, source: Path) -> dict[str, Any]:
    (run_folder,) = (home / "checkpoints").iterdir()
    (found,) = find_runs([run_folder])
    tested = found._replace(config={**found.config, "test_dataset": {"src": str((source / "test").resolve())}})
    errors = predict(tested, "test", max_structures=10_000)
    noise = [row["noise_relative"] for row in found.history if "noise_relative" in row]
    return {
        "forces": 1e3 * errors.forces_mae,
        "energy": 1e3 * errors.energy_mae,
        "steps": max(row["step"] for row in found.history),
        "noise": noise[-1] if noise else None,
    }


def gains(results: Sequence[Finished]) -> list[dict[str, Any]]:
    """For every molecule, number of frames, network and method: means over seeds, deviations, gains over s2ef.

    A gain is the mean over seeds that both have of how much less the error is, in percent, pairwise; its uncertainty is
    the standard error of that mean, None for one seed.
    """
    by_cell = {result.cell: result for result in results}
    rows = []
    for key in sorted({result.cell._replace(seed=0) for result in results}):
        own = [result for result in results if result.cell._replace(seed=0) == key]
        row = {**key._asdict(), "seeds": [result.cell.seed for result in own], "steps": own[0].steps}
        del row["seed"]
        for error in ("forces", "energy"):
            values = [getattr(result, error) for result in own]
            row |= {error: float(np.mean(values)), f"{error}_by_seed": values}
            row[f"{error}_deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            pairs = [(by_cell.get(result.cell._replace(method="s2ef")), result) for result in own]
            less = [100 * (1 - getattr(two, error) / getattr(one, error)) for one, two in pairs if one is not None]
            row[f"{error}_gain"] = float(np.mean(less)) if less else None
            several = len(less) > 1
            row[f"{error}_gain_error"] = float(np.std(less, ddof=1) / len(less) ** 0.5) if several else None
        noise = [result.noise for result in own if result.noise is not None]
        row["noise"] = float(np.mean(noise)) if noise else None
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of gains."""
    lines = [
        "| molecule | frames | network | method | steps | seeds | forces, meV/Å | energy, meV | gain in forces "
        "| gain in energy | noise over predicting zero |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        errors = [
            f"{row[name]:.1f} ({', '.join(f'{value:.1f}' for value in row[f'{name}_by_seed'])})"
            for name in ("forces", "energy")
        ]
        less = ["" if row["method"] == "s2ef" else _with_error(row, name) for name in ("forces", "energy")]
        noise = "" if row["noise"] is None else f"{row['noise']:.2f}"
        cells = [row["molecule"], row["frames"], row["network"], row["method"], row["steps"], len(row["seeds"])]
        lines.append("| " + " | ".join(map(str, [*cells, *errors, *less, noise])) + " |")
    return "\n".join(lines)


def report(folder: Path, out: Path) -> None:
    """Print the table of what is finished, and write it, with a plot beside it, as JSON."""
    rows = gains(list(finished(folder)))
    print(markdown(rows))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"hardware": hardware("cpu"), "table": rows}, indent=1))
    _plot([row for row in rows if row["method"] != "s2ef"], out.with_suffix(".png"))


def _with_error(row: dict[str, Any], name: str) -> str:
    gain, error = row[f"{name}_gain"], row[f"{name}_gain_error"]
    return "" if gain is None else f"{gain:+.1f}%" + ("" if error is None else f" ± {error:.1f}")


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Gains in forces, one bar for each row."""
    import matplotlib.pyplot as plt

    known = [row for row in rows if row["forces_gain"] is not None]
    figure, axes = plt.subplots(figsize=(6, 1 + 0.4 * len(known)))
    names = [f"{row['molecule']}, {row['frames']} frames, {row['network']}, {row['method']}" for row in known]
    errors = [row["forces_gain_error"] or 0 for row in known]
    axes.barh(names, [row["forces_gain"] for row in known], xerr=errors)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("less error of forces than s2ef, %")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _dens(arguments: Sequence[Any], log: Any, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "dens_plugin.cli", *map(str, arguments)]
    return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode


_AXES = ("molecules", "frames", "networks", "methods", "seeds")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is not trained yet")
    train.add_argument("folder", type=Path, help="of all runs")
    train.add_argument("--data", type=Path, default=Path("../shared/data/molecules"))
    train.add_argument("--molecules", nargs="+", default=["ethanol", "malonaldehyde", "aspirin", "uracil"])
    train.add_argument("--frames", nargs="+", type=int, default=[100])
    train.add_argument("--networks", nargs="+", choices=NETWORKS, default=["painn"])
    train.add_argument("--methods", nargs="+", choices=METHODS, default=["s2ef", "dens"])
    train.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    train.add_argument("--steps", type=int, default=20_000)
    train.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    table = commands.add_parser("table", help="errors and gains of what is finished")
    table.add_argument("folder", type=Path, help="of all runs")
    table.add_argument("--out", type=Path, default=Path("benchmarks/results/gains.json"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
