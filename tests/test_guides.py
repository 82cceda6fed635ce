"""The guides' examples are complete: they run, and keep the contracts."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dens_plugin.backbones
from dens_plugin.backbones.family import families
from dens_plugin.fields import NOISE, corruption_of, rows_of
from dens_plugin.testing import EPOCH, ObjectiveContract, random_batch
from dens_plugin.training.warm_start import warm_start

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks_of(guide):
    """A guide's Python blocks."""
    return re.findall(r"```python\n(.*?)```", (DOCS / guide).read_text(), re.DOTALL)


def python_of(guide, blocks=slice(None)):
    """The module that some of a guide's Python blocks make, which run one after the other."""
    module = ModuleType(Path(guide).stem)
    sys.modules[module.__name__] = module  # where dataclasses look for the names of their types
    for block in blocks_of(guide)[blocks]:
        exec(compile(block, guide, "exec"), vars(module))
    return module


OBJECTIVE = python_of("add_an_objective.md")


class TestObjectiveOfTheGuide(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return OBJECTIVE.AdsorbateNoise()


def test_objective_of_the_guide_moves_adsorbates_alone():
    batch = random_batch()
    batch.tags = torch.arange(len(batch.pos)) % 3
    prepared = OBJECTIVE.AdsorbateNoise.from_settings({"sigma": "5e-2"}).prepare(batch, EPOCH)
    expected = (batch.tags == 2) & (batch.fixed == 0)
    assert torch.equal(corruption_of(prepared).mask, expected)
    assert torch.equal(rows_of(prepared)[NOISE].mask, expected)


def test_contract_of_the_guide_is_the_shipped_one():
    assert issubclass(OBJECTIVE.TestAdsorbateNoise, ObjectiveContract)


class TestBackboneOfTheGuide(python_of("add_a_backbone.md", slice(1, None)).TestTiny):
    """Its file is found by being in the folder; nothing else names it."""

    @pytest.fixture(scope="class", autouse=True)
    def in_the_folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("backbones")
        (folder / "tiny.py").write_text(blocks_of("add_a_backbone.md")[0])
        dens_plugin.backbones.__path__.append(str(folder))
        families.cache_clear()
        assert "Tiny" in [family.title for family in families()]
        yield
        dens_plugin.backbones.__path__.remove(str(folder))
        families.cache_clear()

    def test_its_checkpoint_starts_another_run(self, tmp_path, caplog):
        torch.save({"state_dict": self.build().state_dict()}, tmp_path / "tiny.pt")
        caplog.set_level("INFO")
        warm_start(self.build(), {"path": tmp_path / "tiny.pt", "new_heads": ["noise"]})
        assert "drew anew head noise" in caplog.text
