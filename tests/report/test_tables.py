import pytest
from report_samples import write_run

from dens_plugin.report.runs import find_runs
from dens_plugin.report.tables import gain_table, group_table, repeated_seeds, run_table


@pytest.fixture
def seeds(tmp_path):
    """Two seeds with DeNS and two without."""
    write_run(tmp_path, "toy_dens_seed0", [(0.040, 1.0), (0.020, 0.6), (0.024, 0.5)], denoises=True)
    write_run(tmp_path, "toy_dens_seed1", [(0.050, 1.0), (0.030, 0.7), (0.028, 0.6)], denoises=True)
    write_run(tmp_path, "toy_s2ef_seed0", [(0.060, 1.0), (0.050, 0.5)])
    write_run(tmp_path, "toy_s2ef_seed1", [(0.060, 1.0), (0.054, 0.5)])
    return find_runs([tmp_path])


def test_a_row_has_the_final_errors_and_those_of_the_best_validation(seeds):
    row = run_table(seeds, {}, split="val").rows[0]
    assert row == ("toy_dens_seed0", "–", "0", "–", "300", "3*", "30.0", "24.0", "20.0", "500.0", "600.0")


def test_seeds_are_averaged(seeds):
    rows = group_table(seeds, {}, split="val").rows
    assert rows[0] == ("toy_dens", "–", "2", "26.0 ± 2.8", "24.0 ± 5.7", "550.0 ± 70.7", "600.0 ± 0.0")
    assert [row[0] for row in rows] == ["toy_dens", "toy_s2ef"]


def test_runs_of_one_seed_count_as_one(tmp_path):
    for name, error in (("toy-seed0", 0.02), ("toy seed0", 0.04), ("toy_seed1", 0.05)):
        write_run(tmp_path, name, [(error, 1.0)])
    runs = find_runs([tmp_path])
    mean = run_table(runs, {}, split="val").rows[-1]
    assert mean[0] == "mean ± standard deviation"
    assert mean[7] == "40.0 ± 14.1"  # of 30, the mean of seed 0, and 50
    assert group_table(runs, {}, split="val") is None
    (note,) = repeated_seeds(runs)
    assert "toy seed0, toy-seed0 have one seed" in note


def test_gain_is_the_lowered_share_of_the_baselines_error(seeds):
    (row,) = gain_table(seeds, {}, split="val").rows
    assert row[:3] == ("toy_dens", "toy_s2ef", "+50.0")  # 26 instead of 52
    assert row[4] == "-10.0"  # 550 instead of 500


def test_no_gain_without_both(seeds):
    assert gain_table([run for run in seeds if not run.method.is_baseline], {}, split="val") is None


def test_no_gain_across_data_sets(seeds):
    def trained_on(run, path, name):
        config = {"dataset": {"src": path}, "task": {"objective": {"name": name}}, "optim": {}, "cmd": {"seed": 0}}
        return run._replace(config=config)

    ours = trained_on(seeds[0], "a", "dens")
    assert gain_table([ours, trained_on(seeds[2], "a", "s2ef")], {}, split="val") is not None
    assert gain_table([ours, trained_on(seeds[2], "b", "s2ef")], {}, split="val") is None


def test_one_run_of_each_configuration_needs_no_second_table(seeds):
    assert group_table([seeds[0], seeds[2]], {}, split="val") is None


def test_markdown_has_as_many_cells_in_every_line(seeds):
    lines = run_table(seeds, {}, split="val").markdown().splitlines()[2:]
    assert len(lines) == 6
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
