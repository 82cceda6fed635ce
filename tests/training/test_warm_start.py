"""Weights of one run for the model of another: which parts are taken, drawn anew or left out, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from fairchem.core.models.base import HydraModel
from samples import MODEL
from torch import nn

import dens_plugin
from dens_plugin.checks.warm_start import WarmStart, warm_start_of
from dens_plugin.training.warm_start import warm_start, warn_of_other_scales

ESEN = {
    "max_num_elements": 90,
    "sphere_channels": 8,
    "lmax": 1,
    "mmax": 1,
    "edge_channels": 8,
    "num_distance_basis": 8,
    "num_layers": 1,
    "hidden_channels": 8,
    "act_type": "gate",
    "mlp_type": "spectral",
}
ENERGY, FORCES = {"module": "dens_plugin.EnergyHead"}, {"module": "dens_plugin.ForceHead"}
NOISE = {"module": "dens_plugin.NoiseHead"}


def equiformer(seed, heads, backbone="dens_plugin.EquiformerV2DeNS"):
    settings = {key: value for key, value in MODEL.items() if key != "name"}
    torch.manual_seed(seed)
    return HydraModel(backbone={"model": backbone, **settings}, heads=heads, pass_through_head_outputs=True)


def esen(seed=0):
    torch.manual_seed(seed)
    heads = {"energy": {"module": "dens_plugin.ESENEnergyHead"}, "forces": {"module": "dens_plugin.ESENForceHead"}}
    return HydraModel(backbone={"model": "dens_plugin.ESENDeNS", **ESEN}, heads=heads, pass_through_head_outputs=True)


def saved(model, path):
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    return path


def changed(model, before):
    """The parts whose weights are not those of before, by name."""
    parts = set()
    for name, value in model.named_parameters():
        if not torch.equal(value, before[name]):
            parts.add(".".join(name.split(".")[:2]) if name.startswith("output_heads") else name.split(".")[0])
    return parts


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_a_pre_trained_backbone_gets_new_heads(tmp_path, log):
    """Noise alone was predicted; energies and forces are to be."""
    path = saved(equiformer(1, {"noise": NOISE}), tmp_path / "pre.pt")
    model = equiformer(2, {"energy": ENERGY, "forces": FORCES})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"has no head energy, head forces, .*new_heads: \[energy, forces\]"):
        warm_start(model, path)
    warm_start(model, {"path": path, "new_heads": ["energy", "forces"]})
    assert changed(model, before) == {"backbone"}
    expected = (
        "took backbone, force encoding; drew anew head energy, head forces; left out of the checkpoint head noise"
    )
    assert expected in log.text


def test_a_head_can_be_new_though_the_checkpoint_has_it(tmp_path):
    heads = {"energy": ENERGY, "forces": FORCES, "noise": NOISE}
    path, model = saved(equiformer(1, heads), tmp_path / "first.pt"), equiformer(2, heads)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    warm_start(model, {"path": path, "new_heads": ["forces"]})
    assert changed(model, before) == {"backbone", "output_heads.energy", "output_heads.noise"}


def test_what_serves_training_alone_is_new_without_being_asked(tmp_path, log):
    """Of a plain model there is neither an encoding nor a head for noise, whatever that head is called."""
    plain = {"energy": {"module": "equiformerV2_scalar_head"}, "forces": {"module": "equiformerV2_vector_head"}}
    path = saved(equiformer(1, plain, backbone="equiformer_v2_backbone"), tmp_path / "plain.pt")
    second = {"module": "dens_plugin.NoiseHead", "output_name": "auxiliary_forces"}
    model = equiformer(2, {"energy": ENERGY, "forces": FORCES, "auxiliary_forces": second})
    warm_start(model, path)
    assert "drew anew force encoding, head auxiliary_forces; left out of the checkpoint nothing" in log.text


def test_a_plain_model_takes_what_it_has(tmp_path, log):
    path = saved(equiformer(1, {"energy": ENERGY, "forces": FORCES, "noise": NOISE}), tmp_path / "dens.pt")
    warm_start(equiformer(2, {"energy": ENERGY, "forces": FORCES}, backbone="equiformer_v2_backbone"), path)
    assert "drew anew nothing; left out of the checkpoint force encoding, head noise" in log.text


def test_another_backbone_is_one_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds weights of eSEN, and the model is EquiformerV2, which cannot use them"
    ):
        warm_start(equiformer(2, {"energy": ENERGY}), saved(esen(), tmp_path / "esen.pt"))
    with pytest.raises(ValueError, match=r"set model.backbone.model to dens_plugin.EquiformerV2DeNS"):
        warm_start(esen(), saved(equiformer(1, {"energy": ENERGY}), tmp_path / "eqv2.pt"))


def test_another_network(tmp_path):
    path = saved(nn.Linear(2, 2), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match=r"holds the weights of no network known here"):
        warm_start(equiformer(2, {"energy": ENERGY}), path)


def test_a_new_head_that_the_model_lacks(tmp_path):
    path = saved(equiformer(1, {"energy": ENERGY}), tmp_path / "first.pt")
    with pytest.raises(ValueError, match=r"new_heads: the model has no head stress, only backbone"):
        warm_start(equiformer(2, {"energy": ENERGY}), {"path": path, "new_heads": ["stress"]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "must be a checkpoint's path, or a block"),
        ("", "must be a checkpoint's path, or a block"),
        (
            {"path": "a.pt", "new_head": ["noise"]},
            "unknown key 'new_head' .*did you mean 'new_heads'",
        ),
        ({"new_heads": ["noise"]}, "path must be the path of a checkpoint, got None"),
        ({"path": "a.pt", "new_heads": "noise"}, "new_heads must be a list of names"),
    ],
)
def test_settings(value, message):
    with pytest.raises(ValueError, match=message):
        warm_start_of(value)


def test_settings_that_are_a_path():
    assert warm_start_of("a.pt") == warm_start_of({"path": "a.pt"}) == WarmStart(warm_start_of("a.pt").path)


class Scale(nn.Module):
    """A normaliser in use."""

    def __init__(self, mean, rmsd):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("rmsd", torch.tensor(rmsd))


class References(nn.Module):
    """Element references in use."""

    def __init__(self, values):
        super().__init__()
        self.register_buffer("element_references", torch.tensor(values))


def test_scales_that_differ_are_told(caplog):
    checkpoint = {"normalizers": {"energy": {"mean": torch.tensor(1.0), "rmsd": torch.tensor(2.0)}}}
    warn_of_other_scales(checkpoint, {"energy": Scale(1.0, 2.0)}, {})
    assert not caplog.text
    warn_of_other_scales(checkpoint, {}, {})
    assert (
        "The normaliser of `energy` has mean 0 and stdev 1 here; the weights were trained with 1 and 2" in caplog.text
    )
    assert "normalizer.energy to {mean: 1, stdev: 2}" in caplog.text


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ([0.0, 1.0], None, "where the weights are from and not here"),
        (None, [0.0, 1.0], "here and not where the weights are from"),
        ([0.0, 1.0], [0.0, 1.5], "here and where the weights are from, and they differ"),
        ([0.0, 1.0], [0.0, 1.0, 3.0], None),
    ],
)
def test_references_that_differ_are_told(caplog, before, now, words):
    old = {} if before is None else {"elementrefs": {"energy": {"element_references": torch.tensor(before)}}}
    warn_of_other_scales(old, {}, {} if now is None else {"energy": References(now)})
    assert (words is None and not caplog.text) or f"subtracted from `energy` {words}" in caplog.text


def test_public_names_of_heads_are_there():
    assert dens_plugin.NoiseHead.auxiliary
