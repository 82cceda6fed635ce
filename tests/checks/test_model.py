"""Names in the ``model`` block that do not exist."""

from __future__ import annotations

import pytest
from fairchem.core.common.utils import setup_imports

from dens_plugin.checks.model import require_known_model


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("dens_plugin.EquiformerGradHead", "did you mean 'EquiformerGradientHead'"),
        ("elsewhere.Head", "there is no such class in elsewhere$"),
        ("equiformer_grad_head", "did you mean 'equiformer_gradient_head'"),
    ],
)
def test_a_slip_in_a_heads_name(module, hint):
    setup_imports()
    model = {"name": "hydra", "heads": {"energy": {"module": module}}}
    with pytest.raises(ValueError, match=rf"unknown model '{module}' in model.heads.energy.module; .*{hint}"):
        require_known_model(model)


@pytest.mark.parametrize(("key", "value"), [("drop_path_rate", 1.0), ("alpha_drop", -0.1)])
def test_a_rate_that_drops_everything(key, value):
    setup_imports()
    backbone = {"model": "dens_plugin.EquiformerV2DeNS", key: value}
    with pytest.raises(ValueError, match=f"model.backbone.{key} must be at least 0 and below 1, got {value}"):
        require_known_model({"name": "hydra", "backbone": backbone})


@pytest.mark.parametrize(
    ("model", "where", "sentence"),
    [
        (
            {"name": "hydra", "backbone": {"model": "dens_plugin.ESCNDeNS", "precision": "bf16"}},
            "model.backbone",
            "it belongs to dens_plugin.EquiformerV2DeNS, and ESCNDeNS has",
        ),
        (
            {"name": "hydra", "backbone": {"model": "dens_plugin.ESENDeNS", "precision": "tf32"}},
            "model.backbone",
            "it belongs to dens_plugin.EquiformerV2DeNS, and ESENDeNS has",
        ),
        (
            {"name": "dens_plugin.FlatESCNDeNS", "precision": "bf16"},
            "model",
            "it belongs to dens_plugin.FlatEquiformerV2DeNS, and FlatESCNDeNS has",
        ),
    ],
)
def test_a_key_of_another_model(model, where, sentence):
    setup_imports()
    with pytest.raises(ValueError, match=f"unknown key 'precision' in {where}: {sentence} nothing of the kind; leave"):
        require_known_model(model)


def test_a_key_of_no_model():
    setup_imports()
    backbone = {"model": "dens_plugin.ESCNDeNS", "num_layer": 2}
    with pytest.raises(ValueError, match=r"unknown key 'num_layer' in model\.backbone; did you mean 'num_layers'"):
        require_known_model({"name": "hydra", "backbone": backbone})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("otf_graph", "false", r"must be true or false, got 'false'; the command line takes True and False"),
        ("norm_type", 3, r"must be a word, got 3"),
        ("num_layers", [2], r"must be a number, got \[2\]"),
        ("alpha_drop", "1e-1", r"must be a number, got '1e-1'; YAML takes 1e-1 for text, and 1.0e-1 for a number"),
        ("use_pbc", None, r"must be true or false, got None"),
    ],
)
def test_a_setting_of_another_kind(key, value, message):
    setup_imports()
    backbone = {"model": "dens_plugin.EquiformerV2DeNS", key: value}
    with pytest.raises(ValueError, match=rf"model.backbone.{key} {message}"):
        require_known_model({"name": "hydra", "backbone": backbone})
