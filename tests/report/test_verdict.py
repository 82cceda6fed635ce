"""The words above a report's tables: who won, how sure that is, and whether it can be judged."""

from __future__ import annotations

import pytest
from report_samples import write_run

from dens_plugin.report.readiness import fall, noise_error, warning
from dens_plugin.report.runs import find_runs
from dens_plugin.report.verdict import verdicts

FLAT = [(0.06, 1.0), (0.05, 0.5), (0.05, 0.5), (0.05, 0.5), (0.05, 0.5), (0.05, 0.5)]


def better(errors, share):
    return [((1 - share) * forces, energy) for forces, energy in errors]


def write_seeds(root, gains):
    """Baselines that differ a little, and methods that are better by a share."""
    for seed, gain in enumerate(gains):
        write_run(root, f"base_seed{seed}", better(FLAT, 0.01 * seed))
        write_run(root, f"method_seed{seed}", better(FLAT, gain), denoises=True)
    return find_runs([root])


def words(runs):
    (sentence,) = verdicts(runs, {}, split="val")
    return sentence


def test_a_clear_gain(tmp_path):
    sentence = words(write_seeds(tmp_path, [0.20, 0.21, 0.22]))
    assert sentence.startswith("method won against base: its forces are 20% better (39.5 against 49.5 meV/Å")
    assert sentence.endswith("times its standard error (3 seeds each).")


def test_a_clear_loss(tmp_path):
    sentence = words(write_seeds(tmp_path, [-0.10, -0.11, -0.12]))
    assert sentence.startswith("base won against method: the method's forces are 12% worse")


def test_within_the_spread_of_seeds(tmp_path):
    sentence = words(write_seeds(tmp_path, [-0.2, 0.0, 0.25]))
    assert sentence.startswith("method and base cannot be told apart by their forces")
    assert "is within what seeds differ (3 seeds each)" in sentence


def test_one_seed_says_nothing_of_chance(tmp_path):
    assert words(write_seeds(tmp_path, [0.2])).endswith("there is only one seed each.")


def test_nothing_to_compare(tmp_path):
    write_run(tmp_path, "base_seed0", FLAT)
    assert not list(verdicts(find_runs([tmp_path]), {}, split="val"))


def test_the_best_of_several_methods(tmp_path):
    runs = write_seeds(tmp_path, [0.1, 0.1])
    for seed in (0, 1):
        write_run(tmp_path, f"other_seed{seed}", better(FLAT, 0.3), denoises=True)
    runs = find_runs([tmp_path])
    assert words(runs).startswith("other, the best of 2 methods, won against base")


class TestReadiness:
    def test_ready(self, tmp_path):
        assert warning(write_seeds(tmp_path, [0.2, 0.2])) is None

    def test_one_seed(self, tmp_path):
        assert warning(write_seeds(tmp_path, [0.2])) == (
            "Not ready to be judged: one seed each. It takes more seeds (--seed)."
        )

    def test_errors_that_still_fall(self, tmp_path):
        for seed in (0, 1):
            write_run(tmp_path, f"a_seed{seed}", [(0.10 - 0.01 * at, 1.0) for at in range(6)])
        runs = find_runs([tmp_path])
        assert fall(runs[0]) == pytest.approx(1 - 0.05 / 0.07)
        assert "errors still fall over the last fifth of the steps (a by 29%)" in warning(runs)

    def test_noise_that_is_not_learnt(self, tmp_path):
        runs = write_seeds(tmp_path, [0.2, 0.2])
        config = {"task": {"objective": {"name": "dens", "sigma": 0.075}}, "optim": {}, "cmd": {"seed": 0}}
        noisy = [run._replace(config={**config, "cmd": {"seed": run.seed}}) for run in runs if "method" in run.label]
        assert "the noise error is above 0.7 of predicting none (method 0.84)" in warning(noisy)

    def test_noise_of_a_validation_counts_before_that_of_batches(self, tmp_path):
        (run, *_) = write_seeds(tmp_path, [0.2])
        config = {"task": {"objective": {"name": "dens", "sigma": 0.075}}, "optim": {}, "cmd": {"seed": 0}}
        rows = [{"split": "val", "step": 600, "time": 1e9, "noise_relative": 0.31}]
        measured = run._replace(config=config, history=[*run.history, *rows])
        assert noise_error(measured) == pytest.approx(0.31)
