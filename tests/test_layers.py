"""The layers of the package: no module imports from a layer above its own, or from its own layer's other folders."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dens_plugin"
LAYERS = [
    {"__init__", "compat", "fields", "figure_style", "settings", "stand_ins"},
    {"objectives", "nn"},
    {"backbones", "data"},
    {"checks"},
    {"relaxation"},
    {"training"},
    {"inference", "leaderboard", "convert", "probe", "cluster"},
    {"report"},
    {"cli", "demo"},
]
# Shipped for tests of other packages: it meets everything and nothing of the package imports it.
OUTSIDE = {"testing"}


def layer(part):
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Parts of the package that a file imports, by name or by the path of `importlib`."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "dens_plugin" else [f"dens_plugin.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("dens_plugin."):
                yield name.split(".")[1]


FILES = [path for path in PACKAGE.rglob("*.py") if part_of(path) not in OUTSIDE]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = part_of(path)
    for imported in imports(path):
        is_ground = layer(own) == 0 and imported not in OUTSIDE and layer(imported) == 0
        assert imported == own or is_ground or (imported not in OUTSIDE and layer(imported) < layer(own)), imported


def test_nothing_imports_the_command_line():
    assert not [path for path in FILES if "cli" in imports(path)]


@pytest.mark.parametrize("part", ["objectives", "nn"])
def test_the_core_does_without_fairchem(part):
    for path in (PACKAGE / part).rglob("*.py"):
        assert not re.search(r"(from|import) fairchem", path.read_text()), path
