from __future__ import annotations

from pathlib import Path

import pytest

from dens_plugin.checks.objective import objective_from_config

METHODS = ("s2ef", "dens", "dens_quarter", "dens_copy", "dens_no_encoding", "dropped_labels", "noisy_nodes")


@pytest.fixture
def file(load):
    return load("gains")


@pytest.fixture
def cell(file):
    return file.Cell("ethanol", 100, "painn", "dens", 1)


def test_a_name_says_everything(file, cell):
    assert file.Cell.of(cell.name) == cell


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_objectives(file, cell, method, tmp_path):
    assert set(METHODS) == set(file.METHODS)
    built = file.config(cell._replace(method=method), tmp_path, 6000)
    assert objective_from_config(built | {"model": {}, "outputs": {}})


@pytest.mark.parametrize("network", ["painn", "torchmd_et"])
def test_configs_exist(file, cell, network, tmp_path):
    built = file.config(cell._replace(network=network), tmp_path, 6000)
    assert all(Path(part).is_file() for part in built["includes"])
    assert built["optim"]["max_epochs"] == 462  # of 13 steps


def test_gains_pair_seeds(file, cell):
    """A seed that only one method has counts for its mean, and not for the gain."""
    errors = {("s2ef", 0): 50.0, ("s2ef", 1): 60.0, ("dens", 0): 45.0, ("dens", 1): 48.0, ("dens", 2): 90.0}
    results = [
        file.Finished(cell._replace(method=method, seed=seed), error, 10.0, 6000, None if method == "s2ef" else 0.5)
        for (method, seed), error in errors.items()
    ]
    dens, s2ef = file.gains(results)
    assert (dens["method"], s2ef["method"]) == ("dens", "s2ef")
    assert dens["forces"] == pytest.approx(61)
    assert dens["forces_gain"] == pytest.approx(15)  # of 10 and 20
    assert dens["forces_gain_error"] == pytest.approx(5)
    assert "+15.0% ± 5.0" in file.markdown([dens, s2ef])


def test_only_a_good_end_is_one(file, tmp_path):
    (tmp_path / "log.txt").write_text("...\nexit 1\n")
    assert not file.is_finished(tmp_path)
    (tmp_path / "log.txt").write_text("...\nexit 0\n")
    assert file.is_finished(tmp_path)
