from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
import torch
from loop_samples import needs_loops

from dens_plugin.nn.backends import cpu
from dens_plugin.nn.backends.cpu import team
from dens_plugin.nn.backends.cpu.team import ARGUMENTS, Loop, floats, loops_reason, rows_of_thread, table_of, uses_loops


def _write_thread(pointer):
    table = table_of(pointer)
    out = floats(table[ARGUMENTS], (table[0],))
    start, stop = rows_of_thread(table)
    for row in range(start, stop):
        out[row] = 10 * row + 1


@needs_loops
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 2, 1001])
def test_every_row_is_some_threads(rows, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = torch.zeros(rows)
        Loop(_write_thread).run(rows, out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out, 10 * torch.arange(rows).float() + 1)


@needs_loops
def test_loops_are_for_float32_on_a_cpu():
    assert uses_loops(torch.zeros(1))
    assert not uses_loops(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not uses_loops(torch.zeros(1, dtype=torch.bfloat16))
    assert not uses_loops(torch.zeros(1, device="meta"))


def test_a_loop_that_cannot_be_compiled_is_a_reason(monkeypatch):
    def wrong(pointer):
        return pointer.nothing

    monkeypatch.setattr(team, "_PROBE", Loop(wrong))
    team._probe.cache_clear()
    try:
        assert "cannot be compiled" in loops_reason()
        assert not uses_loops(torch.zeros(1))
    finally:
        team._probe.cache_clear()


def test_another_openmp_library_is_a_reason(monkeypatch):
    monkeypatch.setattr(team, "_SYMBOLS", ("GOMP_parallel_of_nobody",))
    team._openmp.cache_clear()
    try:
        assert "GOMP_parallel_of_nobody" in loops_reason()
    finally:
        team._openmp.cache_clear()


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_everything_imports_without_numba(missing):
    program = f"""
import sys
sys.modules[{missing!r}] = None
from dens_plugin.nn.backends.cpu.team import loops_reason
import dens_plugin.nn.equiformer_v2.attention
print(loops_reason())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Numba cannot be imported" in found.stdout


def test_what_is_kept_on_disk_is_of_all_files(monkeypatch, tmp_path):
    first = team._fingerprint()
    (tmp_path / "sums.py").write_text("changed")
    monkeypatch.setattr(team, "__file__", str(tmp_path / "team.py"))
    team._fingerprint.cache_clear()
    try:
        assert team._fingerprint() != first
    finally:
        team._fingerprint.cache_clear()


@needs_loops
def test_no_two_functions_have_one_name():
    """Of which a process would take one for the other if two processes had compiled them."""
    dispatcher = pytest.importorskip("numba.core.dispatcher").Dispatcher
    modules = [importlib.import_module(f"{cpu.__name__}.{found.name}") for found in pkgutil.iter_modules(cpu.__path__)]
    functions = {id(f): f for module in modules for f in vars(module).values() if isinstance(f, dispatcher)}
    names = [(f.py_func.__module__, f.py_func.__qualname__) for f in functions.values()]
    assert len(names) > 30
    assert len(set(names)) == len(names)


@needs_loops
@pytest.mark.parametrize("wrong", [torch.zeros(3, dtype=torch.int32), torch.zeros(3, device="meta")])
def test_what_a_loop_would_misread_is_an_error(wrong):
    with pytest.raises(TypeError, match="loops read float32 and int64 on a CPU"):
        Loop(_write_thread).run(3, wrong)


@needs_loops
def test_the_default_device_does_not_matter():
    out = torch.zeros(10)
    with torch.device("meta"):
        Loop(_write_thread).run(10, out)
    assert out[9] == 91


@needs_loops
def test_a_damaged_cache_is_no_error(tmp_path):
    program = """
import torch
from dens_plugin.nn.backends.cpu.team import loops_reason
print(loops_reason())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    for _ in range(2):
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert found.stdout.strip() == "None"
        kept = list(tmp_path.rglob("*.nbi"))
        assert kept
        for path in kept:
            path.write_bytes(b"")
