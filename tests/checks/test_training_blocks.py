"""The blocks that say what is trained on, and by which method: slips in them."""

from __future__ import annotations

import pytest

from dens_plugin.checks.metrics import with_metrics
from dens_plugin.checks.objective import objective_from_config
from dens_plugin.checks.schema import require_read_keys
from dens_plugin.checks.warm_start import warm_start_of
from dens_plugin.objectives.s2ef import S2EF

LOSSES = [{"energy": {"fn": "mae", "coefficient": 1}}]


def objective(block, losses=LOSSES):
    return objective_from_config({"task": {"objective": block}, "optim": {}, "loss_functions": losses})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "s2ef", "prob": 0.5}, r"unknown key 'prob' in task.objective: s2ef has no settings; take 'prob' out"),
        ({"name": None}, r"task.objective lacks `name`; allowed are dens, "),
        ({"name": "collections.OrderedDict"}, r"task.objective.name 'collections.OrderedDict' is no objective"),
        ({"name": "..dens"}, r"task.objective.name '..dens' cannot be imported"),
        ({"name": ".dens"}, r"task.objective.name '.dens' cannot be imported"),
        (
            {"name": "dens", "sigma": {"low": 0.01, "high": 0.1, "levels": float("inf")}},
            r"task.objective.sigma.levels must be a whole number, got inf",
        ),
        (
            {"name": "dens", "sigma": {"low": 0.01, "high": 0.1, "levels": float("nan")}},
            r"task.objective.sigma.levels must be a whole number, got nan",
        ),
    ],
)
def test_slips(block, message):
    with pytest.raises(ValueError, match=message):
        objective(block)


def test_null_drops_a_key_of_another_objective():
    assert isinstance(objective({"name": "s2ef", "prob": None}), S2EF)


def test_two_losses_of_one_output():
    with pytest.raises(ValueError, match=r"loss_functions has two losses of 'energy': .* take one out"):
        objective({"name": "s2ef"}, [*LOSSES, {"energy": {"fn": "mse", "coefficient": 1}}])


@pytest.mark.parametrize("settings", [None, {"metrics": {"energy": []}}, {"primary_metric": "energy_mae"}])
def test_nothing_to_train_on(settings):
    with pytest.raises(ValueError, match="there is nothing to train on: name an output under `loss_functions`"):
        with_metrics(settings, objective({"name": "s2ef"}, []))


def test_no_metrics():
    settings = {"metrics": {"energy": []}, "primary_metric": "energy_mae"}
    with pytest.raises(ValueError, match=r"nothing is computed: name a metric .* under evaluation_metrics.metrics"):
        with_metrics(settings, objective({"name": "s2ef"}))


@pytest.mark.parametrize("heads", [5, {"energy": None}])
def test_new_heads_are_a_list(heads):
    with pytest.raises(ValueError, match=r"task.warm_start.new_heads must be a list of names of heads"):
        warm_start_of({"path": "x.pt", "new_heads": heads})


@pytest.mark.parametrize(("fn", "is_read"), [("mae", True), ("mse", False)])
def test_old_keys_may_say_what_the_new_ones_say(fn, is_read):
    """The authors' files have both."""
    config = {"loss_functions": LOSSES, "optim": {"loss_energy": fn}}
    if is_read:
        require_read_keys(config)
    else:
        with pytest.raises(ValueError, match=r"optim.loss_energy is not read .* set loss_functions.energy.fn instead"):
            require_read_keys(config)
