"""Sizes and settings of the paper's rows, arXiv:2403.09549, Tables 1 to 3, 7 and 8."""

from __future__ import annotations

import pytest
from experiments import CONFIGS, model_of, read

import dens_plugin.data.oc22
import dens_plugin.training.trainer  # noqa: F401  (both register names)
from dens_plugin.checks.objective import objective_from_config

MILLIONS = {
    "oc20_2m/equiformer_v2_s2ef_12": 83,
    "oc20_2m/equiformer_v2_dens_12": 89,
    "oc20_all_md/equiformer_v2_s2ef": 153,
    "oc20_all_md/equiformer_v2_dens": 160,
    "oc22/equiformer_v2_s2ef": 122,
    "oc22/equiformer_v2_dens": 127,
    "oc20_2m/escn_s2ef_20": 52,  # not in the text of the paper, but what fairchem's model has
    "oc20_2m/escn_dens_20": 52,
}

# Rows of Tables 7 and 8: epochs, learning rate, lambda_E, clipping, blocks, order, stochastic depth.
TRAINING = {
    "oc20_2m/equiformer_v2_s2ef_12": (12, 2e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_s2ef_20": (20, 4e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_s2ef_30": (30, 4e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_dens_12": (12, 2e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_dens_20": (20, 4e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_dens_30": (30, 4e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_dens_12_no_force_encoding": (12, 2e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_dens_12_no_energy": (12, 2e-4, 2, 100, 12, 2, 0.05),
    "oc20_2m/equiformer_v2_dens_12_all_corrupted": (12, 2e-4, 2, 100, 12, 2, 0.05),
    "oc20_all_md/equiformer_v2_dens": (2, 4e-4, 4, 100, 20, 3, 0.1),
    "oc22/equiformer_v2_s2ef": (6, 2e-4, 4, 50, 18, 2, 0.1),
    "oc22/equiformer_v2_dens": (6, 2e-4, 4, 50, 18, 2, 0.1),
}

# Rows of Tables 7 and 8 and the marks of Table 1(b): p, r, sigma, lambda, force encoding, energy of corrupted ones.
DENOISING = {
    "oc20_2m/equiformer_v2_dens_12": (0.5, 0.5, 0.1, 10, True, True),
    "oc20_2m/equiformer_v2_dens_20": (0.5, 0.5, 0.15, 10, True, True),
    "oc20_2m/equiformer_v2_dens_30": (0.5, 0.5, 0.15, 10, True, True),
    "oc20_2m/escn_dens_20": (0.5, 0.5, 0.15, 10, True, True),
    "oc20_2m/equiformer_v2_dens_12_no_force_encoding": (0.5, 0.5, 0.1, 10, False, True),
    "oc20_2m/equiformer_v2_dens_12_no_energy": (0.5, 0.5, 0.1, 10, True, False),
    "oc20_2m/equiformer_v2_dens_12_all_corrupted": (0.5, None, 0.1, 10, True, True),
    "oc20_all_md/equiformer_v2_dens": (0.125, 0.25, 0.1, 15, True, True),
    "oc22/equiformer_v2_dens": (0.5, 0.5, 0.15, 25, True, True),
}


def experiment(name):
    return read(CONFIGS / "experiment" / f"{name}.yml")


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_number_of_parameters(name, millions):
    """Equal to the paper's, which rounds 121.5 up and 127.5 down."""
    parameters = model_of(experiment(name)).parameters()
    assert abs(sum(p.numel() for p in parameters if p.requires_grad) / 1e6 - millions) < 0.65


def test_building_takes_no_memory():
    model = model_of(experiment("oc20_all_md/equiformer_v2_dens"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(buffer.nbytes for buffer in model.buffers()) < 5e6


@pytest.mark.parametrize(("name", "row"), TRAINING.items())
def test_training_settings(name, row):
    config = experiment(name)
    optim, backbone = config["optim"], config["model"]["backbone"]
    weights = {target: loss["coefficient"] for losses in config["loss_functions"] for target, loss in losses.items()}
    assert weights["forces"] == 100
    assert row == (
        optim["max_epochs"],
        optim["lr_initial"],
        weights["energy"],
        optim["clip_grad_norm"],
        backbone["num_layers"],
        *backbone["mmax_list"],
        backbone["drop_path_rate"],
    )


@pytest.mark.parametrize(("name", "row"), DENOISING.items())
def test_denoising_settings(name, row):
    objective = objective_from_config(experiment(name))
    assert row == (
        objective.prob,
        objective.corrupt_ratio,
        objective.sigma.sigma,
        objective.coefficient,
        objective.encode_forces,
        objective.energy_of_corrupted,
    )


@pytest.mark.parametrize("name", [name for name in DENOISING if "no_" not in name and "all_c" not in name])
def test_a_row_with_denoising_differs_from_its_twin_in_nothing_else(name):
    """But for All+MD, which the paper trains for two epochs instead of one (Section B.1)."""
    ours, twin = (experiment(found) for found in (name, name.replace("_dens", "_s2ef")))
    del ours["task"], twin["task"]
    del ours["model"]["backbone"]["model"], twin["model"]["backbone"]["model"], ours["model"]["heads"]["noise"]
    del (
        ours["model"]["heads"]["energy"],
        twin["model"]["heads"]["energy"],
    )  # eSCN's own beside fairchem's, the same numbers
    if "all_md" in name:
        del ours["optim"]["max_epochs"], twin["optim"]["max_epochs"]
        del ours["optim"]["eval_every"], twin["optim"]["eval_every"]
    assert ours == twin
