from __future__ import annotations

import argparse
import csv

import numpy as np
import pytest

from dens_plugin.relaxation.folder import RESULT
from dens_plugin.relaxation.result import Relaxations
from dens_plugin.report import convergence

STATUS = ["converged", "converged", "converged", "out_of_steps", "not_finite", "out_of_memory"]


def relaxations(**changes):
    """Six structures of two atoms, the last without a result."""
    count, nan = len(STATUS), np.nan
    pos = np.arange(6 * count, dtype=np.float32).reshape(-1, 3) / 10
    made = Relaxations(
        ids=np.array([f"random{at}" for at in range(count)]),
        status=np.array(STATUS),
        steps=np.array([10, 20, 30, 300, 4, 0]),
        energy=np.array([-1.0, -2.0, -3.0, -4.0, -5.0, nan]),
        energy_initial=np.array([0.0, 0.0, 0.0, 0.0, -4.5, nan]),
        fmax=np.array([0.011, 0.012, 0.013, 0.08, 2.0, nan]),
        fmax_initial=np.array([1.0, 1.0, 1.0, 1.0, 1.0, nan]),
        energy_relaxed=np.full(count, nan),
        natoms=np.full(count, 2),
        cell=np.tile(np.eye(3) * 30, (count, 1, 1)),
        pos=pos,
        pos_initial=pos,
        pos_relaxed=np.full_like(pos, nan),
        forces=np.zeros_like(pos),
        numbers=np.full(2 * count, 29),
        fixed=np.tile([True, False], count),
    )
    return made._replace(**changes)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "first"
    path.mkdir()
    relaxations().save(path / RESULT)
    return path


def run(*arguments):
    parser = argparse.ArgumentParser()
    convergence.add_arguments(parser)
    convergence.run(parser.parse_args([str(argument) for argument in arguments]))


def test_counts():
    table = convergence.count_table({"a": relaxations()})
    assert table.header[3:] == ("Converged", "Out of steps", "Not finite", "Out of memory")
    assert table.rows == [("a", "6", "50.0", "3", "1", "1", "1")]


def test_distributions_are_over_structures_with_a_result():
    rows = {row[1]: row[2:] for row in convergence.distribution_table({"a": relaxations()}).rows}
    assert rows["Steps"] == ("4", "6", "20", "192", "300", "73")
    assert rows["Energy change (eV)"] == ("-4.000", "-3.600", "-2.000", "-0.700", "-0.500", "-2.100")
    assert rows["Final fmax (eV/Å)"][2] == "0.0130"


def test_failures_are_named():
    rows = convergence.failure_table({"a": relaxations()}).rows
    assert rows == [("a", "random4", "not_finite", "2"), ("a", "random5", "out_of_memory", "2")]


def test_errors_only_where_there_are_labels():
    labels = np.array([-1.01, -2.0, -2.5, np.nan, np.nan, -6.0])  # the last has no prediction
    pos = relaxations().pos.copy()
    pos[1::2, 0] += 0.2
    labelled = relaxations(energy_relaxed=labels, pos_relaxed=pos)
    table = convergence.error_table({"a": relaxations(), "b": labelled})
    (row,) = table.rows
    cells = dict(zip(table.header, row, strict=True))
    assert cells["Energy labels"] == "3"
    assert float(cells["Energy MAE (eV)"]) == pytest.approx(0.51 / 3, abs=1e-4)
    assert float(cells["EwT 0.02 eV (%)"]) == pytest.approx(200 / 3, abs=0.01)
    assert (cells["Position labels"], cells["Positions MAE (Å)"]) == ("5", "0.0667")
    # of the thresholds 0.01, 0.011, ... 0.499 Å those above 0.2 hold
    assert float(cells["ADwT (%)"]) == pytest.approx(100 * 299 / 490, abs=0.3)


def test_command_writes_tables_and_rows(folder, capsys):
    run(folder)
    text = (folder / convergence.MARKDOWN).read_text()
    assert text in capsys.readouterr().out
    assert "| first " in text
    assert "Errors against" not in text
    with open(folder / convergence.CSV, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"random{at}" for at in range(6)]
    assert rows[0]["energy"] == "-1.0"
    assert rows[5]["energy"] == ""


def test_relaxations_stand_beside_each_other(folder, tmp_path, capsys):
    other = tmp_path / "other" / "first"
    other.mkdir(parents=True)
    relaxations(status=np.array(["converged"] * 6)).save(other / RESULT)
    run(folder, other, "--out", tmp_path / "made" / "here")
    text = (tmp_path / "made" / "here" / convergence.MARKDOWN).read_text()
    assert text.index("50.0") < text.index("100.0")
    assert "other/first" in text


def test_what_cannot_be_read_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="`dens relax` writes it"):
        run(tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        run(folder, folder)
    (folder / RESULT).write_bytes((folder / RESULT).read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole result"):
        run(folder)
