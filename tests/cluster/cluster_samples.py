"""A tiny experiment and the paths of what is shipped, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import yaml
from samples import base_config

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


def tiny():
    """An experiment of `STEPS` steps on two ranks with batches of two out of twelve structures, and one evaluation."""
    config = base_config(Path())
    config["optim"] |= {"num_workers": 1, "max_epochs": STEPS // 3, "eval_every": 1000}
    return config


def write(path, block):
    path.write_text(yaml.safe_dump(block))
    return str(path)
