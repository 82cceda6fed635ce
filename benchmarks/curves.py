"""Short training runs that differ in precision alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from modes import Mode, pairing

from dens_plugin.training.history import FILE_NAME, read_history

CONFIG = Path("configs", "experiment", "oc20_mini_dens.yml")
METRICS = {  # label -> split and key of the history; the first is a running figure of single batches
    "training loss": ("train", "loss"),
    "validation forces, eV/Å": ("val", "forces_mae"),
    "validation energy, eV": ("val", "energy_mae"),
}

_ROOT = Path(__file__).parents[1]
_EVALUATIONS = 6  # of the validation set in a run
_SMOOTHED = 10  # printed training losses in a mean

Curve = list[tuple[int, float]]
Runs = dict[str, dict[str, Curve]]  # run -> label of a metric -> (step, value)


def train_all(folder: Path, precisions: Sequence[str], *, steps: int, device: str, options: Sequence[str] = ()) -> Runs:
    """Train once with each precision, in float32 with a second seed too, and read the curves.

    Args:
        folder: where the runs go.
        precisions: of `modes.PRECISIONS`.
        steps: of the optimiser, in each run.
        device: ``cpu`` or ``cuda``.
        options: overrides of the config, such as ``--dataset.train.src=FOLDER``.
    """
    runs = {}
    modes = [(pairing(name, device).ours, 0) for name in precisions]
    for mode, seed in [*modes, (pairing("fp32", device).ours, 1)]:
        label = f"{mode.label}, seed {seed}"
        print(f"training: {label}", file=sys.stderr)
        run_dir = folder / label.replace(", ", "_").replace(" ", "_")
        command = _command(mode, seed, steps=steps, device=device, folder=run_dir)
        subprocess.run([*command, *options], cwd=_ROOT, check=True, stdout=sys.stderr)
        history = next(run_dir.glob(f"checkpoints/*/{FILE_NAME}"))
        runs[label] = read_curves(history)
    return runs


def read_curves(history: Path) -> dict[str, Curve]:
    """Label of a metric -> its curve; training losses, which are those of single batches, as running means."""
    rows = read_history(history)
    curves = {
        label: sorted((row["step"], row[key]) for row in rows if row["split"] == split and key in row)
        for label, (split, key) in METRICS.items()
    }
    return {label: _smooth(curve) if METRICS[label][0] == "train" else curve for label, curve in curves.items()}


def _command(mode: Mode, seed: int, *, steps: int, device: str, folder: Path) -> list[str]:
    batch = 2
    return [
        *(sys.executable, "-m", "dens_plugin.cli", "train", "--config-yml", str(CONFIG)),
        *(f"--seed={seed}", f"--run-dir={folder.resolve()}", f"--identifier=seed_{seed}", "--print-every=1"),
        *(["--cpu"] if device == "cpu" else []),
        *(["--amp"] if mode.amp else []),
        f"--model.backbone.precision={mode.key}",
        f"--optim.batch_size={batch}",
        "--optim.max_epochs=1",
        f"--optim.eval_every={max(1, steps // _EVALUATIONS)}",
        f"--dataset.train.sample_n={batch * steps}",
        "--dataset.val.sample_n=40",
        "--dataset.test.sample_n=2",  # which fairchem predicts at each evaluation
        "--logger=tensorboard",
    ]


def _smooth(curve: Curve) -> Curve:
    """Means over `_SMOOTHED` steps up to each."""
    values = [value for _, value in curve]
    windows = [values[max(0, end - _SMOOTHED) : end] for end in range(1, len(values) + 1)]
    return [(step, sum(window) / len(window)) for (step, _), window in zip(curve, windows, strict=True)]
