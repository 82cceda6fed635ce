"""What README.md and docs/ tell people to type exists: commands and their options, make targets, settings, files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from fairchem.core.common.utils import load_config

import dens_plugin
from dens_plugin import cli
from dens_plugin.checks.objective import objective_from_config
from dens_plugin.checks.options import require_overrides
from dens_plugin.checks.schema import require_known_keys
from dens_plugin.commands.modes import MODES
from dens_plugin.commands.options import options_parser
from dens_plugin.compat import prepare_host
from dens_plugin.config_files import find_config
from dens_plugin.objectives.dens import DeNS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# The guides' examples add files and names of their own; `test_guides.py` runs them.
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if not path.name.startswith("add_")]
TEXT = "\n".join([README, *(path.read_text() for path in PAGES)])


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(program):
    lines = (line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines())
    return [line for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("line", commands("dens"))
def test_dens_command(line):
    arguments = shlex.split(line)[1:]
    if arguments[0] in MODES:
        parser = options_parser(arguments[0])
        args, overrides = parser.parse_known_args(arguments[1:])
        require_overrides(overrides, parser)
        assert args.config_yml
        return
    args = cli._parser(arguments).parse_args(arguments)
    assert callable(args.run)


@pytest.mark.parametrize("line", commands("make"))
def test_make_target(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_objective_example():
    """Every setting in the example is one, and its plain values are the defaults, as the text says."""
    example = next(block for block in blocks("yaml") if "eligibility:" in block)
    settings = yaml.safe_load(example.replace("...", ""))["task"]["objective"]
    settings.pop("name")
    eligibility = settings.pop("eligibility")
    assert DeNS.from_settings(settings, free_only=True) == DeNS()
    DeNS.from_settings({"eligibility": eligibility}, free_only=True)


def test_readme_fits_on_a_few_screens():
    assert 100 <= len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_pages_can_be_found(page):
    """From the README and from the first page of the documentation, but for how a release is made."""
    if page == "releasing.md":
        return
    assert f"(docs/{page}" in README
    assert page == "index.md" or f"({page})" in (ROOT / "docs" / "index.md").read_text()


def test_installation_is_of_the_tested_versions():
    """And what `make` installs is on the path before the first `dens`."""
    (line,) = [line for line in README.splitlines() if line.startswith("pip install")]
    assert "--constraint constraints.txt" in line
    assert README.index(". .venv/bin/activate") < README.index("\ndens ")


@pytest.mark.parametrize("page", ["README.md", "docs/own_data.md", "docs/pretraining.md", "docs/using.md"])
def test_configs_include_the_packages_parts(page):
    """By their names, which need no repository around them."""
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        for name in (yaml.safe_load(block.replace("...", "")) or {}).get("includes", ()):
            assert find_config(name).is_file()
            assert not name.startswith("configs/")


def test_config_of_the_readme(tmp_path, monkeypatch):
    """It is whole, and its parts are those of the package."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    Path("mal.yml").write_text(block)
    prepare_host()
    config, _, conflicts = load_config("mal.yml")
    assert not conflicts
    require_known_keys(config)
    assert objective_from_config(config).outputs


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|docs|benchmarks|dens_plugin)/[\w/.]+\w", TEXT))))
def test_files_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"dens_plugin\.([A-Z]\w+)", TEXT))))
def test_public_names(name):
    assert getattr(dens_plugin, name)
