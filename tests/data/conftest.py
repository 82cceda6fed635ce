from pathlib import Path

import pytest

from dens_plugin.data.oc20 import convert
from dens_plugin.data.synthetic import generate

SYSTEMS, MAX_STEPS = 3, 8


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> Path:
    """A tiny data set in the layout of the release: train, val_id, val_ood."""
    out = tmp_path_factory.mktemp("release") / "tiny"
    generate(out, systems=SYSTEMS, max_steps=MAX_STEPS, progress=False)
    return out


@pytest.fixture(scope="session")
def converted(release, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "train"
    convert(release / "train", out, progress=False)
    return out
