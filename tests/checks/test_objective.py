"""The authors' keys say what they say in the authors' code."""

from __future__ import annotations

import pytest

from dens_plugin.checks.objective import objective_from_config
from dens_plugin.objectives.noise import FixedSigma, SigmaLadder


def objective(**params):
    optim = {"use_denoising_pos": True, "denoising_pos_coefficient": 10, "denoising_pos_params": params}
    return objective_from_config({"optim": optim, "model": {"name": "equiformer_v2_dens"}})


def test_one_level():
    found = objective(prob=0.5, fixed_noise_std=True, std=0.1, corrupt_ratio=0.5)
    assert (found.prob, found.sigma, found.corrupt_ratio) == (0.5, FixedSigma(0.1), 0.5)


def test_several_levels_are_normalised_by_the_largest():
    found = objective(prob=0.5, fixed_noise_std=False, std_low=0.01, std_high=0.5, num_steps=50)
    assert found.sigma == SigmaLadder(0.01, 0.5, 50, "largest")


def test_a_probability_that_is_left_out_is_zero(caplog):
    assert objective(fixed_noise_std=True, std=0.1).prob == 0
    assert "has no `prob`" in caplog.text


@pytest.mark.parametrize("fixed", [True, False])
def test_missing_levels_are_named(fixed):
    with pytest.raises(ValueError, match=f"lacks std.*fixed_noise_std: {fixed}"):
        objective(prob=0.5, fixed_noise_std=fixed)
