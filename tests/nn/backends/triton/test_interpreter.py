"""Triton decides when it is imported whether to interpret kernels, so those tests have a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_samples import INTERPRETED

FOLDER = Path(__file__).parent
_RAISED = re.compile(r"^(\S+):\d+: in .*\n(?:    .*\n)*E   (\w+): (.*)$", re.MULTILINE)  # by pytest's --tb=short


def fault_of_triton(output):
    """The error, if all failures are a TypeError within Triton's interpreter, as Triton 3.6 has with NumPy 2.5."""
    raised = _RAISED.findall(output)
    theirs = [message for path, kind, message in raised if kind == "TypeError" and "triton/runtime/" in path]
    return theirs[0] if theirs and len(theirs) == len(raised) else None


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
        "--tb=short",
        "-k",
        "test_triton",
        str(FOLDER),
    ]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=FOLDER.parents[3], capture_output=True, text=True
    )
    fault = fault_of_triton(done.stdout)
    if fault is not None:
        pytest.skip(f"Triton's own interpreter fails with NumPy {np.__version__}: {fault}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40, done.stdout
    assert "skipped" not in done.stdout, done.stdout


THEIRS = """
____ test_triton_sums ____
tests/test_sums.py:12: in test_triton_sums
    launch(kernel)
../site-packages/triton/runtime/interpreter.py:1130: in __call__
    grid = int(data)
E   TypeError: only 0-dimensional arrays can be converted to Python scalars
"""


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (THEIRS, "only 0-dimensional arrays can be converted to Python scalars"),
        (THEIRS + THEIRS.replace("TypeError: only", "AssertionError: only"), None),
        (THEIRS.replace("triton/runtime/interpreter", "dens_plugin/nn/sums"), None),
        ("45 passed", None),
    ],
)
def test_only_a_fault_of_triton_is_a_reason_to_skip(output, fault):
    assert fault_of_triton(output) == fault
