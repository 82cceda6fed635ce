"""What is known of a model without a list of backbones anywhere: our own contracts ask ours."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.common.registry import registry
from samples import PLAIN_MODEL
from torch import nn

import dens_plugin
from dens_plugin.backbones.description import describe
from dens_plugin.backbones.family import families
from dens_plugin.backbones.neighbours import Search
from dens_plugin.checks.preflight import require_model
from dens_plugin.objectives.dens import DeNS
from dens_plugin.objectives.s2ef import S2EF


def plain_equiformer():
    return registry.get_model_class("hydra")(**{key: value for key, value in PLAIN_MODEL.items() if key != "name"})


def test_fairchems_is_described_by_its_attributes():
    known = describe(plain_equiformer())
    assert known.family.title == "EquiformerV2"
    assert not known.encodes_forces
    assert isinstance(known.search, Search)
    assert known.search.cutoff == known.cutoff


def test_a_network_that_says_nothing():
    known = describe(nn.Linear(1, 1))
    assert (known.family, known.cutoff, known.periodic, known.elements, known.search) == (None,) * 5
    assert known.own_search == "Linear is not among the backbones that read them from a batch"


def test_a_model_within_ddp_is_itself(monkeypatch):
    model = plain_equiformer()
    wrapped = torch.nn.parallel.DistributedDataParallel.__new__(torch.nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    assert describe(wrapped) == describe(model)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.title)
def test_messages_name_the_parts_of_the_models_own_family(family):
    """A plain backbone of fairchem's is told ours, and a backbone of ours which head it lacks."""
    assert getattr(dens_plugin, family.backbone.removeprefix("dens_plugin."))
    if family.plain is None:
        return
    heads = registry.get_model_class("hydra")
    settings = {"lmax_list": [1], "mmax_list": [1]} if family.title in ("EquiformerV2", "eSCN") else {}
    if family.title == "eSEN":
        settings = {"lmax": 1, "mmax": 1}
    modules = {name: {"module": module} for name, module in family.plain_heads.items()}
    small = {"model": family.plain, "num_layers": 1, "sphere_channels": 4, **settings}
    model = heads(backbone=small, heads=modules, pass_through_head_outputs=True)
    require_model(model, S2EF())
    with pytest.raises(ValueError, match=rf"add `noise: {{module: {family.auxiliary}, output_name: noise}}`"):
        require_model(model, DeNS())
