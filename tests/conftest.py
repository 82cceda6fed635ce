from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dens_plugin.compat import prepare_host

prepare_host()
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def golden():
    """Reads a file of reference values; skips where the folder does not exist."""

    def read(name: str):
        path = SHARED / "golden" / name
        if not path.is_file():
            pytest.skip(f"reference values {path.relative_to(ROOT.parent)} are not here")
        return json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)

    return read


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; skips where it does not exist."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip(f"real data {path.relative_to(ROOT.parent)} are not here")
    return path
