"""Merged configs: keys that null drops, and files of frames."""

from __future__ import annotations

import copy
import inspect

import pytest
import yaml
from fairchem.core.common.utils import setup_imports

import dens_plugin
from dens_plugin.checks.config import require_sound
from dens_plugin.checks.merged import merged_config, with_formats, without_dropped
from dens_plugin.commands.options import options_parser

HYDRA = {
    "name": "hydra",
    "otf_graph": True,
    "pass_through_head_outputs": True,
    "backbone": {"model": "dens_plugin.PaiNNDeNS", "hidden_channels": 8, "num_layers": 1, "cutoff": 4.0},
    "heads": {
        "energy": {"module": "dens_plugin.PaiNNEnergyHead"},
        "forces": {"module": "dens_plugin.PaiNNForceHead"},
        "noise": {"module": "dens_plugin.PaiNNNoiseHead"},
    },
}


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("optim.clip_grad_norm", None),
        ("optim.scheduler_params.warmup_factor", None),
        ("task.warm_start", None),
        ("task.prediction_dtype", None),
        ("evaluation_metrics", None),
        ("evaluation_metrics.metrics.energy", None),
        ("outputs.forces.eval_on_free_atoms", None),
        ("dataset.train.transforms.normalizer", None),
        ("dataset.train.key_mapping", None),
        ("dataset.val.first_n", None),
        ("model.heads.noise", None),
        ("model.heads.forces.output_name", None),
        ("model.backbone.num_layers", None),
        ("model.backbone.a_key_of_another_network", None),
        ("slurm.constraint", None),
    ],
)
def test_null_drops_an_included_key(config, path, left):
    config = {**copy.deepcopy(config), "model": copy.deepcopy(HYDRA), "slurm": {"mem": 1}}
    *block, key = path.split(".")
    at = config
    for name in block:
        at = at[name]
    at[key] = None
    at = without_dropped(config)
    for name in block:
        at = at[name]
    assert key not in at


@pytest.mark.parametrize(
    "path", ["task.objective.corrupt_ratio", "model.backbone.rbf", "dataset.val", "logger", "model.backbone.envelope"]
)
def test_null_stays_where_it_is_a_value(config, path):
    config = {**copy.deepcopy(config), "model": copy.deepcopy(HYDRA)}
    *block, key = path.split(".")
    at = config
    for name in block:
        at = at[name]
    at[key] = None
    at = without_dropped(config)
    for name in block:
        at = at[name]
    assert at[key] is None


def test_null_stays_for_every_setting_of_a_network_that_may_be_none():
    setup_imports()
    parameters = inspect.signature(dens_plugin.PaiNNDeNS.__mro__[1].__init__).parameters
    nothing = [name for name, parameter in parameters.items() if parameter.default is None]
    assert nothing
    model = {"name": "hydra", "backbone": {"model": "dens_plugin.PaiNNDeNS", **dict.fromkeys(nothing)}}
    assert without_dropped({"model": model})["model"] == model


@pytest.mark.parametrize("part", ["backbone", "heads"])
def test_a_hydra_without_a_part_is_refused(part):
    model = {**HYDRA, part: None}
    with pytest.raises(ValueError, match=rf"model.{part} is null, and a hydra needs one: give it a block"):
        without_dropped({"model": model})
    tuned = {**model, "finetune_config": {"starting_checkpoint": "a.pt"}}
    assert without_dropped({"model": tuned})["model"][part] is None


def test_a_file_that_drops_keys_of_one_that_it_includes(config, tmp_path, monkeypatch):
    """As a person writes it: DeNS in the included file, training without it in the other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yml").write_text(yaml.safe_dump({**config, "model": HYDRA}))
    own = {
        "includes": ["base.yml"],
        "task": {"objective": {"name": "s2ef", "prob": None}},
        "model": {"backbone": {"model": "dens_plugin.PaiNN"}, "heads": {"noise": None}},
        "optim": {"ema_decay": None},
    }
    (tmp_path / "own.yml").write_text(yaml.safe_dump(own))
    parser = options_parser("train")
    args, _ = parser.parse_known_args(["--config-yml", "own.yml", "--mode", "train", "--cpu"])
    merged = merged_config(args, [])
    assert set(merged["model"]["heads"]) == {"energy", "forces"}
    assert "ema_decay" not in merged["optim"]
    require_sound(merged)


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz", "a.extxyz.xz", "a.npz"])
def test_files_of_frames_are_known_by_their_names(config, name):
    config["dataset"]["val"]["src"] = name
    assert with_formats(config)["dataset"]["val"]["format"] == "frames"
    assert "format" not in config["dataset"]["val"]
    config["dataset"]["val"]["format"] = "ase_read_multi"
    assert with_formats(config)["dataset"]["val"]["format"] == "ase_read_multi"


def test_frames_are_not_trained_on(config):
    config["dataset"]["train"]["src"] = "a.extxyz"
    with pytest.raises(ValueError, match=r"dataset.train.src: 'a.extxyz' is a file of frames.*`dens data molecules`"):
        with_formats(config)
