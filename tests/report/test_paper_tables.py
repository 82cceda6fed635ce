"""Tables 4 to 6 of the paper, ours beside them, and the sweeps that compute them."""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics

import pytest
import yaml
from experiments import CONFIGS, read
from report_samples import write_run

from dens_plugin.checks.objective import objective_from_config
from dens_plugin.cluster.sweeps import read_entries
from dens_plugin.report import report
from dens_plugin.report.paper_tables import MOLECULES, PAPER, molecule_table, read_molecule_errors

SWEEPS = [CONFIGS / "sweep" / f"table{number}.yml" for number in (4, 5, 6)]
ROWS = [row for rows in PAPER.values() for row in rows]
LOSS = {"malonaldehyde": (1, 100), "naphthalene": (2, 20), "uracil": (1, 20)}  # Table 9; (1, 80) for the others


def validations(root, errors, *, model="eqv1", **notes):
    """Molecule -> the folder of its validation; errors are (energy, forces) in eV and eV/Å, notes what its row says."""
    folders = {}
    for name, (energy, forces) in errors.items():
        folders[name] = write_run(root / name, f"{model}_{name}", [(forces, energy)])
        row = {"split": "val", "step": 700, "time": 1e9, "forces_mae": forces, "energy_mae": energy, "weights": name}
        (folders[name] / "history.jsonl").write_text(json.dumps(row | notes) + "\n")
    return folders


MANIFEST = {"formula": "C9H8O4", "elements": ["C", "H", "O"], "reference_energy_ev": -17000.0}
ERRORS = {"toluene": (0.0041, 0.0022), "aspirin": (0.0053, 0.0072)}


def test_every_row_has_every_molecule():
    for row in ROWS:
        assert tuple(row.errors) == MOLECULES
        assert all(0 < value < 15 for pair in row.errors.values() for value in pair)


def test_what_the_text_says_of_the_tables():
    """Section 4.3: DeNS improves the forces of L 2 on aspirin by 20.8 %; L 2 with it is no worse than L 3 without."""
    without2, without3, with2, with3 = PAPER["md17-table4"]
    assert round(100 * (1 - with2.errors["aspirin"][1] / without2.errors["aspirin"][1]), 1) == 20.8
    for name in MOLECULES:
        assert with2.errors[name][1] <= without3.errors[name][1]
        assert with3.errors[name][1] <= with2.errors[name][1]


def test_indices_1_and_2_are_those_of_table_4():
    table4, table5, table6 = ({row.model: row.errors for row in rows} for rows in PAPER.values())
    for row, twin in (("Equiformer (L_max 2)", 0), ("Equiformer (L_max 2) + DeNS", 1)):
        assert table4[row] == list(table5.values())[twin] == list(table6.values())[twin]


@pytest.mark.parametrize("name", ["md17-table5", "md17-table6"])
def test_each_ablation_costs_forces_on_average(name):
    """Tables 5 and 6: nothing has better forces than index 2."""
    means = [statistics.mean(forces for _, forces in row.errors.values()) for row in PAPER[name]]
    assert min(means) == means[1]


def test_cells_are_in_the_papers_units_and_order(tmp_path):
    table = molecule_table([read_molecule_errors(validations(tmp_path, ERRORS))], paper="md17-table4")
    assert table.rows[:2] == [("eqv1", "aspirin", "5.3", "7.2"), ("eqv1", "toluene", "4.1", "2.2")]
    assert table.rows[2] == ("Equiformer (L_max 2) (paper)", "aspirin", "5.3", "7.2")
    assert len(table.rows) == 2 + 4 * 2
    assert "Table 4" in table.title


def test_without_the_paper(tmp_path):
    assert len(molecule_table([read_molecule_errors(validations(tmp_path, ERRORS))]).rows) == 2


class TestRefusals:
    def test_unknown_molecule(self, tmp_path):
        with pytest.raises(ValueError, match="unknown molecule 'asprin' in --molecules; did you mean 'aspirin'"):
            read_molecule_errors(validations(tmp_path, {"asprin": (0.1, 0.1)}))

    def test_unknown_table(self, tmp_path):
        model = read_molecule_errors(validations(tmp_path, ERRORS))
        with pytest.raises(ValueError, match="unknown --paper 'md17-table7'; did you mean"):
            molecule_table([model], paper="md17-table7")

    def test_the_same_data_twice(self, tmp_path):
        folders = validations(tmp_path, {"aspirin": (0.1, 0.2), "toluene": (0.1, 0.2)})
        with pytest.raises(ValueError, match=r"aspirin and toluene have the very same errors.*dataset\.val\.src"):
            read_molecule_errors(folders)

    def test_one_validation_in_two_rows(self, tmp_path):
        one, other = (
            read_molecule_errors(validations(tmp_path / name, {name: (0.1, 0.2)})) for name in ("aspirin", "ethanol")
        )
        with pytest.raises(ValueError, match=r"aspirin and ethanol have the very same errors"):
            molecule_table([one, other])
        with pytest.raises(ValueError, match=r"two models have the very same errors for aspirin"):
            molecule_table([one, one])

    def test_a_training(self, tmp_path):
        """Its validations are on the validation set, whatever --molecules calls it."""
        folder = write_run(tmp_path, "eqv1_aspirin", [(0.1, 0.2)])
        with pytest.raises(ValueError, match=r"given for aspirin, is a training.*dens validate"):
            read_molecule_errors({"aspirin": folder})

    @pytest.mark.parametrize(
        ("formula", "part", "match"),
        [("C2H6O", "test", "which is C2H6O and not C9H8O4"), ("C9H8O4", "val", "which is not the test set")],
    )
    def test_other_data(self, formula, part, match, tmp_path):
        data = tmp_path / "data"
        data.mkdir()
        (data / "manifest.json").write_text(json.dumps(MANIFEST | {"formula": formula}))
        folders = validations(tmp_path, {"aspirin": (0.1, 0.2)}, src=str(data / part))
        with pytest.raises(ValueError, match=match):
            read_molecule_errors(folders)

    def test_data_that_are_right_or_gone(self, tmp_path):
        (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
        for number, source in enumerate((tmp_path / "test", tmp_path / "gone" / "val")):
            folders = validations(tmp_path / str(number), {"aspirin": (0.1, 0.2)}, src=str(source))
            assert read_molecule_errors(folders).errors == {"aspirin": (100, 200)}

    def test_no_validation(self, tmp_path):
        folders = validations(tmp_path, ERRORS)
        (folders["aspirin"] / "history.jsonl").write_text('{"split": "train", "step": 1, "time": 1.0, "loss": 1.0}\n')
        with pytest.raises(ValueError, match="given for aspirin, has no validation"):
            read_molecule_errors(folders)

    def test_not_finite(self, tmp_path):
        with pytest.raises(ValueError, match="given for aspirin, has energy_mae nan"):
            read_molecule_errors(validations(tmp_path, {"aspirin": (float("nan"), 0.1)}))

    def test_tables_of_the_wrong_kind(self, tmp_path):
        folders = validations(tmp_path, ERRORS)
        with pytest.raises(ValueError, match="--paper oc22 is compared with --splits"):
            report.write_report([], tmp_path / "out", molecules=[folders], paper="oc22")
        with pytest.raises(ValueError, match="--paper md17-table4 is compared with --molecules"):
            report.write_report([folders["aspirin"]], tmp_path / "out", paper="md17-table4")


def test_command(tmp_path, capsys):
    folders = validations(tmp_path, ERRORS)
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    arguments = ["--molecules", *(f"{name}={folder}" for name, folder in folders.items())]
    report.run(parser.parse_args([*arguments, "--paper", "md17-table6", "--out", str(tmp_path / "out")]))
    assert "3: DeNS without force encoding (paper)" in capsys.readouterr().out


def test_arguments_of_another_form(tmp_path):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    with pytest.raises(ValueError, match="--molecules 'ethanol' must be MOLECULE=VALIDATION, for example ethanol="):
        report.run(parser.parse_args(["--molecules", "ethanol", "--out", str(tmp_path / "out")]))


def figures_of(path):
    """The figures in a sweep's comments, in order."""
    return [
        tuple(map(float, pair)) for pair in re.findall(r"the paper: ([\d.]+) meV, ([\d.]+) meV/Å", path.read_text())
    ]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_is_the_table_row_by_row(path):
    rows = PAPER[f"md17-{path.stem}"]
    assert figures_of(path) == [pair for row in rows for pair in row.errors.values()]
    entries = read_entries([path])
    assert len({entry.name for entry in entries}) == len(entries) == len(rows) * len(MOLECULES)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_entries_have_table_9s_values(path):
    for number, entry in enumerate(read_entries([path])):
        name = MOLECULES[number % len(MOLECULES)]
        assert entry.name.startswith(f"{name}_")
        changes = dict(entry.changes)
        paths = [value for key, value in changes.items() if key.startswith("dataset.")]
        assert len(paths) == 5
        assert all(value.startswith(f"data/md17/{name}/") for value in paths)
        config = read(entry.config)
        losses = changes.get("loss_functions", config["loss_functions"])
        losses = ast.literal_eval(str(losses))  # what fairchem makes of a changed list
        assert tuple(losses[at][key]["coefficient"] for at, key in enumerate(("energy", "forces"))) == LOSS.get(
            name, (1, 80)
        )
        block = config["task"]["objective"]
        block.update({key.rpartition(".")[2]: value for key, value in changes.items() if "objective" in key})
        objective = objective_from_config(config)
        if block["name"] == "dens":
            special = name == "toluene"
            assert (objective.prob, objective.sigma.sigma) == ((0.125, 0.025) if special else (0.25, 0.05))
            assert (objective.coefficient, objective.decay_to, objective.denominators) == (5, 0, "own")
            assert objective.corrupt_ratio == (None if "all_corrupted" in entry.config.stem else 0.25)


def test_comments_of_experiments_are_the_tables_figures():
    table4 = {row.model: row.errors["aspirin"] for row in PAPER["md17-table4"]}
    expected = {
        "equiformer_l2_s2ef": table4["Equiformer (L_max 2)"],
        "equiformer_l3_s2ef": table4["Equiformer (L_max 3)"],
        "equiformer_l2_dens": table4["Equiformer (L_max 2) + DeNS"],
        "equiformer_l3_dens": table4["Equiformer (L_max 3) + DeNS"],
        "equiformer_l2_no_attention_s2ef": PAPER["md17-table5"][2].errors["aspirin"],
        "equiformer_l2_no_attention_dens": PAPER["md17-table5"][3].errors["aspirin"],
        "equiformer_l2_no_attention_no_norm_s2ef": PAPER["md17-table5"][4].errors["aspirin"],
        "equiformer_l2_no_attention_no_norm_dens": PAPER["md17-table5"][5].errors["aspirin"],
        "equiformer_l2_dens_all_corrupted": PAPER["md17-table6"][4].errors["aspirin"],
    }
    files = sorted((CONFIGS / "experiment" / "md17").glob("*.yml"))
    assert {path.stem for path in files} == set(expected)
    for path in files:
        forces, energy = re.search(r"forces ([\d.]+) meV/Å, energy ([\d.]+) meV", path.read_text()).groups()
        assert (float(energy), float(forces)) == expected[path.stem]
        assert yaml.safe_load(path.read_text())["includes"][1] == "../../data/md17.yml"
