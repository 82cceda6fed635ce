"""Names in the ``model`` block that do not exist."""

from __future__ import annotations

import pytest
from fairchem.core.common.utils import setup_imports

from dens_plugin.training.model_settings import require_known_model


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
