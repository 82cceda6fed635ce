"""Triton decides when it is imported whether to interpret kernels, so those tests have a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_samples import INTERPRETED

FOLDER = Path(__file__).parent


@pytest.mark.skipif(INTERPRETED, reason="this process interprets already")
def test_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-k",
        "test_triton",
        str(FOLDER),
    ]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=FOLDER.parents[3], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40, done.stdout
    assert "skipped" not in done.stdout, done.stdout
