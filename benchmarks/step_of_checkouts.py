"""Time of a training step in two checkouts of this package, step by step in turn, on the same data and configs.

A step is everything between two forward passes of the trainer's own loop: loading, preparation, both passes, optimiser,
metrics and logs::

    python benchmarks/step_of_checkouts.py --before ../before --after . --train DIR --val DIR --steps 40 --out FILE
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import hardware

_WARM_UP = 5
_WORKER = """
import sys, time
from dens_plugin.compat import prepare_host
prepare_host()
import torch
torch.set_num_threads(1)
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, new_trainer_context
import dens_plugin.training.trainer

parser = flags.get_parser()
with new_trainer_context(config=build_config(*parser.parse_known_args(sys.argv[1:]))) as context:
    trainer = context.trainer
    forward = trainer._forward
    resumed = None

    def waiting(batch):
        global resumed
        now = time.perf_counter()
        if resumed is not None:
            print(f"step {now - resumed}", file=sys.stderr, flush=True)
        if not sys.stdin.readline():
            import os
            os._exit(0)
        resumed = time.perf_counter()
        return forward(batch)

    trainer._forward = waiting
    trainer.train(disable_eval_tqdm=True)
"""
SIZES = {
    "2 layers, 32 channels, batch 4": [],
    "2 layers, 32 channels, batch 12": ["--optim.batch_size=12"],
    "4 layers, 64 channels, batch 4": ["--model.backbone.num_layers=4", "--model.backbone.sphere_channels=64"],
}


class Stepper:
    """A process that takes steps of its checkout, one whenever it is told to."""

    def __init__(self, checkout: Path, arguments: list[str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
        environment = {**inherited, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}  # each has its port
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=checkout,
        )

    def step(self) -> float:
        """Take one, and wait until it ends; seconds."""
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        said = []
        for line in self._process.stderr:
            if line.startswith("step "):
                return float(line.split()[1])
            said.append(line)
        raise RuntimeError("the run ended: " + "".join(said[-5:]))

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def compare(before: Path, after: Path, arguments: list[str], steps: int) -> dict[str, float]:
    """Steps of the two checkouts; `in_turn` says what of them."""
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"before": before, "after": after}
        return in_turn(
            {
                name: Stepper(checkout, [*arguments, "--run-dir", f"{folder}/{name}"])
                for name, checkout in checkouts.items()
            },
            steps,
        )


def in_turn(steppers: dict[str, Stepper], steps: int) -> dict[str, float]:
    """Medians in ms of both, and quartiles of the ratios of steps that followed one another; ends the processes."""
    try:
        pairs = [[stepper.step() for stepper in steppers.values()] for _ in range(steps + _WARM_UP)]
    finally:
        for stepper in steppers.values():
            stepper.end()
    (first, second), (ones, others) = steppers, zip(*pairs[_WARM_UP:], strict=True)
    ratios = statistics.quantiles([one / other for one, other in zip(ones, others, strict=True)], n=4)
    return {
        f"{first}, ms": 1000 * statistics.median(ones),
        f"{second}, ms": 1000 * statistics.median(others),
        f"{first} / {second}": ratios[1],
        "lower quartile": ratios[0],
        "upper quartile": ratios[2],
    }


def main() -> None:
    """Compare at all sizes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--after", type=Path, required=True, help="another one")
    parser.add_argument("--train", type=Path, required=True, help="the training set")
    parser.add_argument("--val", type=Path, required=True, help="the validation set")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    rows = {}
    print("| size | before, ms | after, ms | before / after | quartiles |\n|---|---|---|---|---|")
    for size, changes in SIZES.items():
        arguments = ["--mode", "train", "--config-yml", "configs/experiment/demo_dens.yml", "--cpu"]
        arguments += [f"--dataset.{split}.src={getattr(args, split).resolve()}" for split in ("train", "val")]
        arguments += ["--dataset.test=None", "--optim.eval_every=1000000", "--optim.max_epochs=1000", *changes]
        row = rows[size] = compare(args.before, args.after, arguments, args.steps)
        middle = f"{row['before, ms']:.1f} | {row['after, ms']:.1f} | {row['before / after']:.3f}"
        print(f"| {size} | {middle} | {row['lower quartile']:.3f} to {row['upper quartile']:.3f} |", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps({"machine": hardware("cpu"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
