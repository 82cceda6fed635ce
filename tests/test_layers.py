"""The layers of the package: imports go down, between folders and within them, and never in a circle.

Imports for type checkers and within functions count too, and so do paths that are given to `importlib`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dens_plugin"
LAYERS = [
    {
        "__init__",
        "cells",
        "compat",
        "disk",
        "columns",
        "config_files",
        "fields",
        "figure_style",
        "log_lines",
        "settings",
        "stand_ins",
    },
    {"objectives", "nn"},
    {"backbones", "data"},
    {"checks", "padding"},
    {"relaxation", "graphs"},
    {"training"},
    {"inference", "leaderboard", "convert", "probe", "cluster"},
    {"report"},
    {"launch"},
    {"commands"},
    {"cli", "demo"},
]
# Shipped for tests of other packages: it meets everything and nothing of the package imports it.
OUTSIDE = {"testing"}
# Folders of a folder that others beside them may import; all the rest know nothing of one another.
SHARED = {"nn": {"backends", "so2"}}
# The longest chain of imports within a folder: a reader of the last file may have to open so many.
FLOORS = {"nn": 9, "backbones": 7, "training": 8}
USUAL_FLOORS = 6


def name_of(path):
    """The dotted name of a file's module, a package's own being that of its folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(path):
    """The package's modules that a file imports."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            named |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            named |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name for name in named & MODULES.keys() if name not in ("dens_plugin", name_of(path))}


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def part_of(name):
    """A module's folder or file beneath the package."""
    return name.split(".")[1] if "." in name else "__init__"


def layer(part):
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) not in OUTSIDE and "." in name])
def test_imports_go_down(name):
    own = part_of(name)
    for imported in map(part_of, IMPORTS[name]):
        is_ground = layer(own) == 0 and imported not in OUTSIDE and layer(imported) == 0
        is_command = own == "cli" and imported == "launch"  # by the path, when a mode of fairchem's is asked for
        is_lower = imported not in OUTSIDE and layer(imported) < layer(own)
        assert imported == own or is_ground or is_command or is_lower, imported


def test_nothing_imports_the_command_line():
    assert not [name for name in MODULES if part_of(name) != "cli" and "cli" in map(part_of, IMPORTS[name])]


def folder_of(name):
    """The folder within a folder that a module is in, as ``nn.so2``; empty for a file of the folder itself."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if len(parts) > 1 and (PACKAGE / parts[0] / parts[1]).is_dir() else ""


def test_folders_beside_one_another_know_nothing_of_each_other():
    breaches = {
        (folder_of(name), folder_of(imported))
        for name in MODULES
        for imported in IMPORTS[name]
        if folder_of(name) and folder_of(imported) and part_of(name) == part_of(imported)
        if folder_of(name) != folder_of(imported)
        if folder_of(imported).split(".")[1] not in SHARED.get(part_of(imported), ())
    }
    assert not breaches


def height(name, within, path=()):
    """The longest chain of imports from a module down; raises AssertionError for a circle."""
    assert name not in path, " -> ".join([*path[path.index(name) :], name])
    below = [imported for imported in IMPORTS[name] if part_of(imported) == within or not within]
    return 1 + max((height(each, within, (*path, name)) for each in below), default=0)


@pytest.mark.parametrize("part", sorted({part_of(name) for name in MODULES if (PACKAGE / part_of(name)).is_dir()}))
def test_floors_of_a_folder(part):
    """No circle, and a chain that a reader can follow."""
    heights = {name: height(name, part) for name in MODULES if part_of(name) == part}
    assert max(heights.values()) <= FLOORS.get(part, USUAL_FLOORS), max(heights, key=heights.get)


@pytest.mark.parametrize("part", ["objectives", "nn"])
def test_the_core_does_without_fairchem(part):
    for path in (PACKAGE / part).rglob("*.py"):
        assert not re.search(r"(from|import) fairchem", path.read_text()), path
