"""Losses, metrics, outputs and loggers that do not exist, told before the model is built."""

from __future__ import annotations

import copy
import re

import pytest
from fairchem.core.common.utils import setup_imports

import dens_plugin.training.trainer  # noqa: F401
from dens_plugin.checks.names import require_known_names, require_login


@pytest.fixture(autouse=True)
def _registered():
    setup_imports({"skip_experimental_imports": True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss_functions": {"energy": {"fn": "mae", "coefficient": 1}}},
            "loss_functions must be a list with a block for each output, as `- energy: {fn: mae, coefficient: 2}`",
        ),
        ({"loss_functions": ["energy"]}, "an entry of loss_functions must be a block"),
        ({"loss_functions": [{"energy": "mae"}]}, "loss_functions.energy must be a block"),
        (
            {"loss_functions": [{"energy": {"fn": "maee", "coefficient": 1}}]},
            "unknown loss_functions.energy.fn 'maee'; did you mean 'mae'?",
        ),
        ({"loss_functions": [{"energy": {"fn": "mae"}}]}, "loss_functions.energy lacks `coefficient`"),
        ({"loss_functions": [{"energy": {"coefficient": 1}}]}, "loss_functions.energy lacks `fn`"),
        (
            {"loss_functions": [{"energy": {"fn": "mae", "coefficient": "much"}}]},
            "loss_functions.energy.coefficient must be a number, got 'much'",
        ),
        (
            {"loss_functions": [{"energy": {"fn": "mae", "coefficient": 1, "reduction": "men"}}]},
            "unknown loss_functions.energy.reduction 'men'; did you mean 'mean'?",
        ),
        (
            {"loss_functions": [{"force": {"fn": "l2mae", "coefficient": 1}}]},
            "loss_functions has 'force', which is not among the `outputs`; did you mean 'forces'?",
        ),
        (
            {"evaluation_metrics": {"metrics": {"energy": ["maee"]}}},
            "unknown metric of evaluation_metrics.metrics.energy 'maee'; did you mean 'mae'?",
        ),
        (
            {"evaluation_metrics": {"metrics": {"energy": "mae"}}},
            "evaluation_metrics.metrics.energy must be a list of metrics, as [mae], got 'mae'",
        ),
        (
            {"evaluation_metrics": {"metrics": {"enrgy": ["mae"]}}},
            "evaluation_metrics.metrics has 'enrgy', which is not among the `outputs`; did you mean 'energy'?",
        ),
        (
            {"outputs": {"energy": {"level": "sytem"}, "forces": {"level": "atom"}}},
            "unknown outputs.energy.level 'sytem'; did you mean 'system'?",
        ),
        (
            {"outputs": {"energy": {"level": "system", "eval_on_free_atoms": "false"}}},
            "outputs.energy.eval_on_free_atoms must be true or false (without quotes), got 'false'",
        ),
        ({"logger": {"name": "tensorbord"}}, "unknown logger 'tensorbord'; did you mean 'tensorboard'?"),
        ({"logger": {"project": "mine"}}, "unknown logger 'None'"),
    ],
)
def test_unknown_names(config, change, message):
    require_known_names(config)
    with pytest.raises(ValueError, match=re.escape(message)):
        require_known_names({**copy.deepcopy(config), **change})


def test_all_of_fairchems_metrics_are_known(config):
    metrics = {
        "forces": ["mae", "rmse", "cosine_similarity", "forcesx_mae"],
        "misc": ["energy_within_threshold"],
    }
    require_known_names(config | {"evaluation_metrics": {"metrics": metrics}})


class TestLogin:
    @pytest.fixture(autouse=True)
    def _nobody(self, monkeypatch, tmp_path):
        """A person without a file of keys."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize("block", [{}, {"logger": "wandb"}, {"logger": {"name": "wandb", "project": "p"}}])
    def test_without_a_key(self, block):
        with pytest.raises(ValueError, match=r"logger is wandb.* run `wandb login`, set WANDB_API_KEY or WANDB_MODE"):
            require_login(block)

    @pytest.mark.parametrize("block", [{"logger": "tensorboard"}, {"is_debug": True}])
    def test_where_none_is_needed(self, block):
        require_login(block)

    @pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "offline"), ("WANDB_API_KEY", "0123456789" * 4)])
    def test_with_a_key_or_offline(self, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        require_login({"logger": "wandb"})
