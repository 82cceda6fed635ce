"""Tables of NDeM and of denoise pre-training, ours beside them."""

from __future__ import annotations

import argparse
import json

import pytest
from report_samples import write_run

from dens_plugin.report import report
from dens_plugin.report.relatives import PAPER, relatives_table


def validation(root, name, **metrics):
    """The folder of a `dens validate` run."""
    folder = write_run(root / name, name, [(0.1, 0.1)])
    row = {"split": "val", "step": 700, "time": 1e9, "weights": name} | metrics
    (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.mark.parametrize("name", PAPER)
def test_rows_fill_their_columns(name):
    table = PAPER[name]
    assert len({model for model, _ in table.rows}) == len(table.rows)
    for _, cells in table.rows:
        assert len(cells) == len(table.columns)
        assert all(cell == "–" or float(cell) > 0 for cell in cells)


def test_what_the_text_says_of_the_tables():
    """NDeM has the best forces of five molecules of eight; pre-training lowers RMSE on ANI-1 by 21.5% on average."""
    *others, ours = (cells for _, cells in PAPER["ndem-table1"].rows)
    best = [min(float(row[at]) for row in others if row[at] != "–") for at in range(8)]
    assert sum(float(cell) < other for cell, other in zip(ours, best, strict=True)) == 5
    rows = [[float(cell) for cell in cells] for _, cells in PAPER["pretrain-table2"].rows]
    for column, average in enumerate((21.5, 21.2, 31.9, 30.9)):
        gains = [
            100 * (1 - after[column] / before[column]) for before, after in zip(rows[::2], rows[1::2], strict=True)
        ]
        assert sum(gains) / 4 == pytest.approx(average, abs=0.15)  # of rounded figures


def test_the_best_settings_are_those_of_table_1():
    ours = dict(PAPER["ndem-table1"].rows)["NDeM"][0]
    assert dict(PAPER["ndem-table4"].rows)["λ 1"] == dict(PAPER["ndem-table5"].rows)["σ 0.05"] == (ours,)


def test_units(tmp_path):
    """Forces of MD17 in kcal/mol/Å, energies of QM9 in meV, of ANI in kcal/mol with the root of the squared error."""
    aspirin = validation(tmp_path, "et_aspirin", forces_mae=0.00717)
    assert relatives_table([{"aspirin": aspirin}], "ndem-table1").rows[0] == ("et", "0.1653", *["–"] * 7)
    folders = {"U0": validation(tmp_path, "et_U0", energy_mae=0.0053), "mu": validation(tmp_path, "et_mu", mu_mae=0.01)}
    row = relatives_table([folders], "ndem-table2").rows[0]
    assert (row[1], row[8]) == ("0.0100", "5.30")
    ani = validation(tmp_path, "egnn_ani1", energy_mse=0.01, energy_mae=0.08)
    assert relatives_table([{"ani1": ani}], "pretrain-table2").rows[0] == ("egnn", "2.31", "1.84", "–", "–")


def test_command(tmp_path, capsys):
    """The paper's figures alone, and beside ours."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    report.run(parser.parse_args(["--paper", "ndem-table4", "--out", str(tmp_path / "alone")]))
    assert "λ 1 (paper)" in capsys.readouterr().out
    folder = validation(tmp_path, "et_aspirin", forces_mae=0.008)
    arguments = ["--columns", f"aspirin={folder}", "--paper", "ndem-table1", "--out", str(tmp_path / "ours")]
    report.run(parser.parse_args(arguments))
    assert "| et " in capsys.readouterr().out


class TestRefusals:
    def test_unknown_column(self, tmp_path):
        with pytest.raises(ValueError, match="unknown column 'asprin' in --columns; did you mean 'aspirin'"):
            relatives_table([{"asprin": tmp_path}], "ndem-table1")

    def test_a_training(self, tmp_path):
        folder = write_run(tmp_path, "et_aspirin", [(0.1, 0.2)])
        with pytest.raises(ValueError, match=r"given for aspirin, is a training.*dens validate"):
            relatives_table([{"aspirin": folder}], "ndem-table1")

    def test_no_metric(self, tmp_path):
        folder = validation(tmp_path, "egnn_ani1", energy_mae=0.08)
        with pytest.raises(ValueError, match=r"no validation with energy_mse: name mse under evaluation_metrics"):
            relatives_table([{"ani1": folder}], "pretrain-table2")

    def test_not_finite(self, tmp_path):
        folder = validation(tmp_path, "et_aspirin", forces_mae=float("nan"))
        with pytest.raises(ValueError, match="given for aspirin, has forces_mae nan"):
            relatives_table([{"aspirin": folder}], "ndem-table1")

    def test_columns_without_a_table(self, tmp_path):
        with pytest.raises(ValueError, match="--columns are those of a table: give --paper, one of ndem-table1"):
            report.write_report([], tmp_path / "out", columns=[{"aspirin": tmp_path}], splits=[{}])
