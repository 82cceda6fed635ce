"""The guides' examples are complete: they run, and keep the contracts."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dens_plugin.fields import NOISE, corruption_of, rows_of
from dens_plugin.testing import EPOCH, ObjectiveContract, random_batch

DOCS = Path(__file__).resolve().parent.parent / "docs"


def python_of(guide):
    """The module that a guide's Python blocks make, which run one after the other."""
    module = ModuleType(Path(guide).stem)
    sys.modules[module.__name__] = module  # where dataclasses look for the names of their types
    for block in re.findall(r"```python\n(.*?)```", (DOCS / guide).read_text(), re.DOTALL):
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
