"""Schedules that fairchem has not, by their numbers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from dens_plugin.training.schedule import Schedule

HELD = {"lambda_type": "held_cosine", "warmup_epochs": 4, "hold_epochs": 2, "epochs": 16}


def rates(scheduler, options, steps, *, metrics=()):
    """The learning rate, 1 by the config, at each step; ``metrics`` are those of evaluations after a step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Schedule(optimizer, {"scheduler": scheduler, "scheduler_params": options})
    found = []
    for step in range(steps):
        found.append(schedule.get_lr())
        optimizer.step()
        schedule.step()
        if step in dict(metrics):
            schedule.step(metrics=dict(metrics)[step])
    return found


def test_held_cosine():
    """Up, level, and down half a cosine over what is left."""
    found = rates("LambdaLR", {**HELD, "warmup_factor": 0.2, "lr_min_factor": 0.1}, 18)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:7] == [1.0] * 3
    falling = [0.1 + 0.45 * (1 + math.cos(math.pi * share / 10)) for share in range(11)]
    assert found[6:17] == pytest.approx(falling)
    assert found[16:] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("numbers", [{"warmup_epochs": 0, "hold_epochs": 16}, {"warmup_epochs": 0, "hold_epochs": 0}])
def test_held_cosine_of_nothing(numbers):
    found = rates("LambdaLR", {**HELD, **numbers, "warmup_factor": 0.0, "lr_min_factor": 0.1}, 17)
    assert found[0] == 1.0
    assert found[16] == pytest.approx(1.0 if numbers["hold_epochs"] else 0.1)


def test_plateau_after_a_warm_up():
    """Evaluations within the warm-up reduce nothing."""
    options = {"factor": 0.5, "patience": 0, "warmup_epochs": 4, "warmup_factor": 0.2}
    metrics = {0: 1.0, 1: 2.0, 5: 3.0, 6: 4.0, 8: 5.0}.items()
    found = rates("ReduceLROnPlateau", options, 10, metrics=metrics)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25])


def test_plateau_without_a_warm_up_is_torchs():
    found = rates(
        "ReduceLROnPlateau", {"factor": 0.5, "patience": 0, "epochs": 9, "lr": 1.0}, 3, metrics={0: 1.0, 1: 2.0}.items()
    )
    assert found == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("LambdaLR", {**HELD, "warmup_factor": 0.2, "lr_min_factor": 0.1}),
        ("LambdaLR", {**HELD, "lambda_type": "cosine", "warmup_factor": 0.2, "lr_min_factor": 0.1}),
        ("StepLR", {"step_size": 2, "gamma": 0.5}),
    ],
)
def test_batches_without_a_step_of_the_optimiser_are_no_slip(scheduler, options):
    """As the first ones of an accumulated step; rates are those of a schedule that follows the optimiser."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Schedule(optimizer, {"scheduler": scheduler, "scheduler_params": options})
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in range(1, 9):
            found.append(schedule.get_lr())
            if batch % 2 == 0:
                optimizer.step()
            schedule.step()
    assert found == rates(scheduler, options, 8)
