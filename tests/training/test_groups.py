"""Optimiser states that were saved in other groups of parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from fairchem.core.models.base import GraphModelMixin

from dens_plugin.training import durable
from dens_plugin.training.groups import regrouped

HYDRA = {
    "equiformer_v2": (
        {"model": "dens_plugin.EquiformerV2DeNS", "max_radius": 4.0, "max_neighbors": 10, "num_layers": 1}
        | {"sphere_channels": 8, "attn_hidden_channels": 8, "num_heads": 2, "attn_alpha_channels": 4}
        | {"attn_value_channels": 4, "ffn_hidden_channels": 8, "lmax_list": [1], "mmax_list": [1], "edge_channels": 8}
        | {"grid_resolution": 6, "num_distance_basis": 8},
        ("EnergyHead", "ForceHead", "NoiseHead"),
    ),
    "esen": (
        {"model": "dens_plugin.ESENDeNS", "cutoff": 4.0, "num_layers": 1, "lmax": 1, "mmax": 1, "sphere_channels": 8}
        | {"hidden_channels": 8, "edge_channels": 8, "num_distance_basis": 8},
        ("ESENEnergyHead", "ESENForceHead", "ESENNoiseHead"),
    ),
}


@pytest.fixture(params=HYDRA)
def config(config, request):
    """A model of backbone and heads, two epochs."""
    backbone, heads = HYDRA[request.param]
    names = ("energy", "forces", "noise")
    config["model"] = {
        "name": "hydra",
        "otf_graph": True,
        "pass_through_head_outputs": True,
        "backbone": backbone,
        "heads": {name: {"module": f"dens_plugin.{head}"} for name, head in zip(names, heads, strict=True)},
    }
    return config


def test_a_run_from_before_the_authors_rule_of_decay_goes_on(config, build, monkeypatch, caplog):
    """Its parameters were grouped by fairchem's rule: every moment must come to its own parameter."""
    with monkeypatch.context() as old:
        old.setattr("dens_plugin.training.trainer.spare_from_decay", lambda model: None)
        before = build(config, timestamp_id="old")
        before.train(disable_eval_tqdm=True)
    path = str(before._folder / "checkpoint.pt")
    sizes = [len(group["params"]) for group in before.optimizer.param_groups]
    config["optim"]["max_epochs"] = 2
    trainer = build(config)
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] != sizes
    caplog.set_level("INFO")
    trainer.load_checkpoint(path)
    assert "other groups of parameters: its moments are kept" in caplog.text
    for own, others in zip(trainer.model.parameters(), before.model.parameters(), strict=True):
        state, saved = trainer.optimizer.state[own], before.optimizer.state[others]
        assert torch.equal(state["exp_avg"], saved["exp_avg"])
        assert torch.equal(state["exp_avg_sq"], saved["exp_avg_sq"])
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0, 1e-3]
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 12


class Two(torch.nn.Module, GraphModelMixin):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)


def stepped(model, **options):
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    sum(value.sum() for value in model.parameters()).backward()
    optimizer.step()
    return optimizer


def test_a_state_that_fits_stays_as_it_is():
    model = Two()
    optimizer = stepped(model)
    state = optimizer.state_dict()
    assert regrouped(state, optimizer, model) is state


def test_a_state_of_another_model_is_left_to_torch():
    model, optimizer = Two(), stepped(Two())
    state = copy.deepcopy(stepped(torch.nn.Linear(5, 5)).state_dict())
    assert regrouped(state, optimizer, model) is state
    assert "start a run of its own" in durable._OTHER_GROUPS
