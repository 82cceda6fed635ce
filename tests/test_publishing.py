"""What others need to use, cite and extend the project is there and agrees with itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import dens_plugin

ROOT = Path(__file__).resolve().parent.parent


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert citation["version"] == newest[1] == dens_plugin.__version__


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "MIT"
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2403.09549"


@pytest.mark.parametrize("name", ["LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "dens_plugin/py.typed"])
def test_file_is_there(name):
    assert (ROOT / name).is_file()


def test_workflow_does_what_the_makefile_does():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]
    told = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    assert all(command in told for command in ("ruff check", "ruff format --check", "mypy", "pytest", "mkdocs build"))


def test_the_test_command_lints():
    assert re.search(r"^test:.*\blint\b", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_page_is_in_the_site(path):
    assert f": {path.name}\n" in (ROOT / "mkdocs.yml").read_text()
