"""Which of this package's files one training step runs through, from a batch of the loader to the end of the step.

What somebody has to open who wants to follow a step::

    python benchmarks/step_files.py --config-yml configs/experiment/demo_dens.yml --train DIR --val DIR
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import dens_plugin
from dens_plugin.compat import prepare_host

_PACKAGE = Path(dens_plugin.__file__).parent


def files_of(work: Callable[[], object]) -> Counter[str]:
    """The package's files in which functions ran during some work in this thread, with the number of calls."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(_PACKAGE):
            found[str(path.relative_to(_PACKAGE))] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    """Take a few steps, and print the files of the last one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-yml", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="the training set")
    parser.add_argument("--val", type=Path, required=True, help="the validation set")
    args = parser.parse_args()
    prepare_host()
    from fairchem.core.common.flags import flags
    from fairchem.core.common.utils import build_config, new_trainer_context

    from dens_plugin.training.loop import TrainingLoop
    from dens_plugin.training.trainer import DeNSTrainer

    with tempfile.TemporaryDirectory() as folder:
        options = ["--mode", "train", "--config-yml", str(args.config_yml), "--cpu", "--run-dir", folder]
        overrides = [f"--dataset.{split}.src={getattr(args, split)}" for split in ("train", "val")]
        overrides += ["--dataset.test=None", "--optim.eval_every=100000"]
        with new_trainer_context(config=build_config(flags.get_parser().parse_args(options), overrides)) as context:
            trainer: DeNSTrainer = context.trainer
            loop = TrainingLoop(trainer)
            batches = loop._batches(0)
            for _ in range(2):
                loop.step(next(batches))
            found = files_of(lambda: loop.step(next(batches)))
    for name, calls in sorted(found.items()):
        print(f"{calls:6}  {name}")
    print(f"{len(found)} files")


if __name__ == "__main__":
    main()
