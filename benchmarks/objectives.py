"""Every objective on every large backbone for a few hundred steps: does the seam hold, and does each learn?

Small networks on frames of malonaldehyde that the package ships (revised MD17). No claim about methods: the runs are
far too short for one. Prints a table, and writes it with all rows to ``--out``::

    python benchmarks/objectives.py --steps 300 --out benchmarks/results/objectives.json
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from machine import hardware

from dens_plugin.training.history import FILE_NAME, read_history

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MOLECULE = "malonaldehyde"
AUXILIARY = "auxiliary_forces"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dens": {"name": "dens", "sigma": 0.05, "denominators": "own"},
    "ndem": {"name": "ndem"},
    "noisy_nodes": {"name": "noisy_nodes", "keep_labels": True},
    "pretrain": {"name": "pretrain", "sigma": 0.1},
}
_V2 = {"max_radius": 5.0, "max_neighbors": 20, "use_pbc": False}
_ESCN = {
    "num_layers": 2,
    "lmax_list": [2],
    "mmax_list": [2],
    "sphere_channels": 32,
    "hidden_channels": 32,
    "edge_channels": 32,
    "num_sphere_samples": 32,
    "cutoff": 5.0,
    "max_neighbors": 20,
    "use_pbc": False,
}
# backbone -> the config of its model, that of its size, changes, and the module of a second vector head
BACKBONES: dict[str, tuple[str, str | None, dict[str, Any], str]] = {
    "EquiformerV2": ("equiformer_v2_dens", "equiformer_v2_mini", _V2, "dens_plugin.NoiseHead"),
    "eSCN": ("escn_dens", None, _ESCN, "dens_plugin.ESCNNoiseHead"),
    "eSEN": ("esen_dens", "esen_mini", {"use_pbc": False}, "dens_plugin.ESENNoiseHead"),
    "Equiformer": ("equiformer_dens", "equiformer_mini_molecule", {}, "dens_plugin.EquiformerNoiseHead"),
}
_OPTIM = {
    "batch_size": 4,
    "eval_batch_size": 25,
    "num_workers": 0,
    "lr_initial": 5.0e-4,
    "optimizer": "AdamW",
    "optimizer_params": {"weight_decay": 0.0},
    "scheduler": "LambdaLR",
    "scheduler_params": {"lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.5, "lr_min_factor": 0.01},
    "clip_grad_norm": 100,
    "ema_decay": 0.99,
}


def config_of(backbone: str, objective: str, data: Path, steps: int) -> dict[str, Any]:
    """A complete config for a run: files of ``configs``, and what is special."""
    model, size, changes, auxiliary = BACKBONES[backbone]
    settings = yaml.safe_load((CONFIGS / "model" / f"{model}.yml").read_text())["model"]
    sized = yaml.safe_load((CONFIGS / "backbone" / f"{size}.yml").read_text())["model"]["backbone"] if size else {}
    settings["backbone"] |= sized | changes
    heads = settings["heads"]
    if objective == "ndem":
        del heads["noise"]
        heads[AUXILIARY] = {"module": auxiliary, "output_name": AUXILIARY}
    if objective == "pretrain":
        settings["heads"] = {"noise": heads["noise"]}
    scale = yaml.safe_load((data / "normalizer.yml").read_text())
    epochs = max(1, round(4 * steps / 200))
    return {
        "includes": [str(CONFIGS / "base_molecules.yml")],
        "dataset": {
            "train": {"format": "lmdb", "src": str(data / "train"), "transforms": {"normalizer": scale}},
            "val": {"src": str(data / "val")},
        },
        "model": settings,
        "task": {"objective": OBJECTIVES[objective]},
        "optim": {**_OPTIM, "max_epochs": epochs, "eval_every": 50 * epochs},
        "evaluation_metrics": {"primary_metric": "noise_mae" if objective == "pretrain" else "forces_mae"},
    }


def run(backbone: str, objective: str, data: Path, steps: int, folder: Path) -> dict[str, Any]:
    """One run in a process of its own, and what became of it."""
    name = f"{backbone}-{objective}"
    config = folder / f"{name}.yml"
    config.write_text(yaml.safe_dump(config_of(backbone, objective, data, steps)))
    command = [sys.executable, "-m", "dens_plugin.cli", "train", "--config-yml", str(config), "--cpu"]
    command += ["--run-dir", str(folder / name), "--identifier", name, "--seed", "0", "--print-every", "10"]
    started = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    seconds = time.perf_counter() - started
    (history,) = (folder / name).glob(f"checkpoints/*/{FILE_NAME}")
    rows = read_history(history)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    validation = [row for row in rows if row["split"] == "val"][-1]
    (relative,) = (value for key, value in validation.items() if key.endswith("_relative"))
    return {
        "backbone": backbone,
        "objective": objective,
        "steps": rows[-1]["step"],
        "first loss": sum(losses[:3]) / 3,
        "last loss": sum(losses[-3:]) / 3,
        "own error / of zero": relative,
        "forces, meV/Å": 1000 * validation["forces_mae"] if "forces_mae" in validation else None,
        "seconds": seconds,
    }


def prepare(folder: Path) -> Path:
    """The shipped molecule as LMDBs, and its normaliser."""
    data = folder / MOLECULE
    command = [sys.executable, "-m", "dens_plugin.cli", "data", "molecules", f"shipped:{MOLECULE}", str(data)]
    subprocess.run([*command, "--split", "200,50"], check=True, stdout=subprocess.DEVNULL)
    import numpy as np

    scale = {}
    for name in ("energy", "forces"):
        with np.load(data / f"normalizer_{name}.npz") as found:
            scale[name] = {"mean": float(found["mean"]), "stdev": float(found["rmsd"])}
    (data / "normalizer.yml").write_text(yaml.safe_dump(scale))
    return data


def main() -> None:
    """Run all pairs in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory(prefix="objectives-") as temporary:
        folder = Path(temporary)
        data = prepare(folder)
        rows = []
        print("| backbone | objective | steps | first loss | last loss | own error / of zero | forces, meV/Å | s |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for backbone in args.backbones.split(","):
            for objective in args.objectives.split(","):
                row = run(backbone, objective, data, args.steps, folder)
                rows.append(row)
                values = ("-" if value is None else f"{value:.4g}" for value in list(row.values())[2:])
                print(f"| {backbone} | {objective} | {' | '.join(values)} |", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps({"machine": hardware("cpu"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
