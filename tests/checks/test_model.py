"""Names in the ``model`` block that do not exist."""

from __future__ import annotations

import inspect

import pytest
import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HeadInterface

import dens_plugin
from dens_plugin.checks.merged import without_dropped
from dens_plugin.checks.model import accepted_settings, is_network, require_known_model
from dens_plugin.checks.names import require_known_names


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


@pytest.mark.parametrize("name", ["os.path", "os.path.join", "math.pi", "dens_plugin.fields.ENERGY", "dict.__doc__"])
@pytest.mark.parametrize("part", ["model", "backbone", "head"])
def test_names_of_what_is_no_network(part, name):
    """Modules, functions, constants and records; null is looked for among a network's settings before that."""
    setup_imports()
    model = {
        "model": {"name": name, "use_pbc": None},
        "backbone": {"name": "hydra", "backbone": {"model": name, "use_pbc": None}},
        "head": {"name": "hydra", "heads": {"energy": {"module": name, "output_name": None}}},
    }[part]
    with pytest.raises(ValueError, match=rf"'{name}' in model.* is no network but a|there is no such class in dict"):
        require_known_model(without_dropped({"model": model})["model"])


@pytest.mark.parametrize("name", ["torch.nn.Linear", "os.path", "math.pi"])
def test_names_of_other_classes(name):
    setup_imports()
    good = {"optim": {}, "dataset": {}, "logger": "tensorboard"}
    for changes in (
        {"trainer": name},
        {"dataset": {"train": {"format": name}}},
        {"loss_functions": [{"energy": {"fn": name.replace("torch.nn.Linear", "torch.cat"), "coefficient": 1}}]},
    ):
        with pytest.raises(ValueError, match=r"is no (trainer|data set|loss): give"):
            require_known_names(good | changes)


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


def test_the_key_of_another_model_for_the_same():
    setup_imports()
    backbone = {"model": "dens_plugin.PaiNNDeNS", "max_num_elements": 5}
    message = r"it belongs to dens_plugin.EGNN,.*, and PaiNNDeNS has 'num_elements'; did you mean that"
    with pytest.raises(ValueError, match=message):
        require_known_model({"name": "hydra", "backbone": backbone})


NETWORKS = [each for each in (getattr(dens_plugin, name) for name in dens_plugin.__all__) if is_network(each)]


class ReachedError(Exception):
    """A constructor came to that of `nn.Module`, after all others have taken their arguments."""


@pytest.mark.parametrize("cls", [each for each in NETWORKS if not issubclass(each, HeadInterface)])
def test_what_is_accepted_is_passed_on_to_a_constructor(cls, monkeypatch):
    def reached(*_, **__):
        raise ReachedError

    monkeypatch.setattr(torch.nn.Module, "__init__", reached)
    accepted = accepted_settings(cls)
    assert "backbone" not in accepted  # of HydraModel, for which a flat layout makes it
    with pytest.raises(ReachedError):
        cls(**{key: parameter.default for key, parameter in accepted.items()})


@pytest.mark.parametrize("cls", [each for each in NETWORKS if issubclass(each, HeadInterface)])
def test_heads_take_what_is_accepted_beside_their_backbone(cls):
    accepted = accepted_settings(cls)
    assert "backbone" not in accepted
    inspect.signature(cls).bind(object(), **accepted)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("otf_graph", "false", r"must be true or false, got 'false'; write true or false without quotes"),
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


BACKBONES = {
    "EquiformerV2DeNS": "max_radius",
    **dict.fromkeys(("ESCNDeNS", "ESENDeNS", "EquiformerDeNS", "PaiNNDeNS", "EGNNDeNS"), "cutoff"),
    **dict.fromkeys(("SE3TransformerDeNS", "TorchMDETDeNS", "SchNet"), "cutoff"),
}


@pytest.mark.parametrize("value", [0, -5.0, float("nan"), float("inf"), 1e9, "wide"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_backbone_takes_an_impossible_cutoff(backbone, value):
    setup_imports()
    model = {"name": "hydra", "backbone": {"model": f"dens_plugin.{backbone}", BACKBONES[backbone]: value}}
    with pytest.raises(ValueError, match=rf"model.backbone.{BACKBONES[backbone]} must be a number"):
        require_known_model(model)


@pytest.mark.parametrize("value", [0, -1, 2.5, float("nan"), True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_backbone_takes_an_impossible_count(backbone, value):
    """Of neighbours, and of whatever else its constructor counts by a whole number."""
    setup_imports()
    accepted = accepted_settings(getattr(dens_plugin, backbone))
    counts = [key for key, parameter in accepted.items() if type(parameter.default) is int]
    assert "max_neighbors" in counts
    for key in counts:
        if (backbone, key, value) == ("ESENDeNS", "mmax", 0) or (key, value) == ("lmax", 0):
            continue  # of order 0 there is something
        with pytest.raises(ValueError, match=rf"model.backbone.{key}( must be|: a network)"):
            require_known_model({"name": "hydra", "backbone": {"model": f"dens_plugin.{backbone}", key: value}})


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        ("EquiformerV2DeNS", {"lmax_list": [12]}, r"lmax_list must be a whole number from 0 to 11, got 12"),
        ("EquiformerV2DeNS", {"lmax_list": []}, r"lmax_list must be a list with one degree, as \[6\], got \[\]"),
        ("EquiformerV2DeNS", {"lmax_list": 6}, r"lmax_list must be a list with one degree"),
        ("ESCNDeNS", {"lmax_list": [2], "mmax_list": [3]}, r"mmax_list = \[3\] must be at most model.backbone.lmax_l"),
        ("ESENDeNS", {"lmax": 20}, r"lmax must be a whole number from 0 to 11, got 20"),
        ("ESENDeNS", {"lmax": 2, "mmax": 3}, r"mmax = 3 must be at most model.backbone.lmax = 2"),
        ("SE3TransformerDeNS", {"num_degrees": 25}, r"num_degrees: a network has 2 to 8 degrees, got 25"),
        ("EquiformerDeNS", {"channels": [8] * 9}, r"channels: a network has 2 to 8 degrees, got 9"),
        ("ESCNDeNS", {"distance_resolution": 0}, r"distance_resolution must be a finite number above 0, got 0"),
        ("EquiformerV2DeNS", {"attn_activation": "relu"}, r"unknown model.backbone.attn_activation 'relu'; allowed"),
    ],
)
def test_sizes_that_no_network_has(backbone, settings, message):
    setup_imports()
    with pytest.raises(ValueError, match=message):
        require_known_model({"name": "hydra", "backbone": {"model": f"dens_plugin.{backbone}", **settings}})
