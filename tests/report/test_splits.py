import gc
import json
import statistics

import pytest
from fairchem.core.common import distutils
from report_samples import write_run
from samples import base_config, trainer_arguments, write_lmdb

from dens_plugin.cli import main
from dens_plugin.report.report import write_report
from dens_plugin.report.splits import (
    AVERAGE,
    PAPER,
    SplitErrors,
    missing_metrics,
    read_split_errors,
    split_table,
)
from dens_plugin.testing import random_structure
from dens_plugin.training.trainer import DeNSTrainer

OC20 = {  # forces and energy MAE, cosine, EFwT
    "id": (0.010, 0.20, 0.80, 0.010),
    "ood_ads": (0.012, 0.22, 0.78, 0.008),
    "ood_cat": (0.014, 0.24, 0.76, 0.006),
    "ood_both": (0.020, 0.30, 0.70, 0.002),
}
OC22 = {split: OC20[key] for split, key in (("id", "id"), ("ood", "ood_cat"))}


def validations(root, errors=OC20, *, model="eqv2", steps=None):
    """Split -> the folder of its validation."""
    folders = {}
    for split, (forces, energy, cosine, within) in errors.items():
        folder = folders[split] = write_run(root / split, f"{model}_val_{split}", [(forces, energy)])
        row = {"split": "val", "step": (steps or {}).get(split, 700), "time": 1e9, "forces_mae": forces}
        row |= {"energy_mae": energy, "forces_cosine_similarity": cosine, "energy_forces_within_threshold": within}
        (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    return folders


def without(folder, metric):
    path = folder / "history.jsonl"
    row = json.loads(path.read_text())
    del row[metric]
    path.write_text(json.dumps(row) + "\n")


def test_the_average_is_over_splits(tmp_path):
    model = read_split_errors(validations(tmp_path))
    assert model.model == "eqv2"
    assert list(model.errors) == list(OC20)
    for at, metric in enumerate(
        ("forces_mae", "energy_mae", "forces_cosine_similarity", "energy_forces_within_threshold")
    ):
        assert model.mean(metric) == pytest.approx(statistics.mean(row[at] for row in OC20.values()))


def test_cells_are_in_the_papers_units(tmp_path):
    rows = split_table([read_split_errors(validations(tmp_path))]).rows
    assert rows[0] == ("eqv2", "id", "200.0", "10.00", "0.8000", "1.00")
    assert rows[4] == ("eqv2", AVERAGE, "240.0", "14.00", "0.7600", "0.65")
    assert len(rows) == 5


def test_the_papers_rows_follow(tmp_path):
    table = split_table([read_split_errors(validations(tmp_path))], paper="oc20-2m")
    assert table.rows[5] == ("EquiformerV2, 12 epochs (paper)", AVERAGE, "285", "20.46", "–", "–")
    assert len(table.rows) == 5 + len(PAPER["oc20-2m"])
    assert "Table 1(a)" in table.title


def test_oc22_has_two_splits(tmp_path):
    table = split_table([read_split_errors(validations(tmp_path, OC22))], paper="oc22")
    assert [row[1] for row in table.rows] == ["id", "ood", AVERAGE, "id", "ood", "id", "ood"]
    assert table.rows[5][2:4] == ("391.6", "20.66")


def test_dens_gains_what_the_paper_says():
    """Section 4.1.2: on All+MD 5 meV and 1.0 meV/Å; Section 4.2: on OC22 9.6 to 15.3 %, and up to 11.7 % of forces."""
    plain, dens = (PAPER["oc20-all-md"][at].errors[AVERAGE] for at in (2, 3))
    assert (plain[0] - dens[0], plain[1] - dens[1]) == pytest.approx((5, 1.0))
    plain, dens = (row.errors for row in PAPER["oc22"])
    gains = {split: [100 * (1 - dens[split][at] / plain[split][at]) for at in (0, 1)] for split in plain}
    assert gains["id"][0] == pytest.approx(9.6, abs=0.05)
    assert gains["ood"] == pytest.approx([15.3, 11.7], abs=0.05)


def test_12_epochs_with_dens_beat_30_without():
    """Section 4.1.1."""
    rows = {row.model: row.errors[AVERAGE] for row in PAPER["oc20-2m"]}
    ours, theirs = rows["EquiformerV2 + DeNS, 12 epochs"], rows["EquiformerV2, 30 epochs"]
    assert ours[0] < theirs[0]
    assert ours[1] < theirs[1]


def test_a_metric_that_was_not_measured_leaves_its_cells_empty(tmp_path):
    folders = validations(tmp_path)
    without(folders["ood_ads"], "energy_forces_within_threshold")
    model = read_split_errors(folders)
    rows = split_table([model]).rows
    assert [row[5] for row in rows] == ["1.00", "–", "0.60", "0.20", "–"]
    assert missing_metrics([model]) == ["energy_forces_within_threshold"]


class TestRefusals:
    def refused(self, folders):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read_split_errors(folders)
        return str(caught.value)

    def test_a_missing_split(self, tmp_path):
        folders = validations(tmp_path)
        del folders["ood_cat"], folders["ood_ads"]
        message = self.refused(folders)
        assert "--splits lacks ood_ads, ood_cat" in message
        assert "dens validate" in message

    def test_an_unknown_split(self, tmp_path):
        folders = validations(tmp_path)
        folders["ood_kat"] = folders.pop("ood_cat")
        assert "did you mean 'ood_cat'?" in self.refused(folders)

    def test_several_checkpoints(self, tmp_path):
        message = self.refused(validations(tmp_path, steps={"ood_both": 500}))
        assert "id 700" in message
        assert "ood_both 500" in message

    def test_the_same_data_twice(self, tmp_path):
        message = self.refused(validations(tmp_path, {**OC20, "ood_both": OC20["ood_ads"]}))
        assert "splits ood_ads and ood_both have the very same errors" in message
        assert "dataset.val.src" in message

    def test_nan(self, tmp_path):
        message = self.refused(validations(tmp_path, {**OC20, "id": (float("nan"), 0.1, 0.5, 0.0)}))
        assert "given for id, has forces_mae nan" in message

    def test_a_folder_of_several_runs(self, tmp_path):
        folders = validations(tmp_path)
        write_run(tmp_path / "id", "another", [(0.1, 0.1)])
        assert "holds 2 runs" in self.refused({**folders, "id": tmp_path / "id"})

    def test_a_run_without_validation(self, tmp_path):
        folders = validations(tmp_path)
        (folders["id"] / "history.jsonl").write_text('{"split": "train", "step": 1, "time": 1.0, "forces_mae": 0.1}\n')
        assert "has no validation" in self.refused(folders)

    def test_no_folder(self, tmp_path):
        assert "there is no folder" in self.refused({**validations(tmp_path), "id": tmp_path / "gone"})

    def test_paper_of_other_splits(self):
        with pytest.raises(ValueError, match="--paper oc22 is about id, ood"):
            split_table([SplitErrors("a", {split: {} for split in OC20})], paper="oc22")
        with pytest.raises(ValueError, match="did you mean 'oc20-2m'"):
            split_table([], paper="oc20-2")


def test_the_report_holds_the_table_without_any_run(tmp_path):
    folders = validations(tmp_path)
    without(folders["ood_ads"], "energy_forces_within_threshold")
    report = write_report([], tmp_path / "out", splits=[folders], paper="oc20-all-md")
    assert [table.title.split(";")[0] for table in report.tables] == ["Validation over the sub-splits"]
    assert report.pictures == []
    assert "energy_forces_within_threshold" in report.notes[0]
    text = (tmp_path / "out" / "table.txt").read_text()
    assert "EquiformerV2 + DeNS, 160M (paper)" in text
    assert "EquiformerV2 + DeNS, 160M (paper)" in report.page.read_text()


def test_two_models_by_the_command_line(tmp_path, capsys):
    arguments = []
    for model, factor in (("plain", 1.0), ("dens", 0.9)):
        errors = {split: (factor * row[0], *row[1:]) for split, row in OC20.items()}
        folders = validations(tmp_path / model, errors, model=model)
        arguments += ["--splits", *(f"{split}={folder}" for split, folder in folders.items())]
    main(["report", "--out", str(tmp_path / "out"), *arguments])
    lines = [line for line in capsys.readouterr().out.splitlines() if AVERAGE in line]
    assert [line.split("|")[1].strip() for line in lines] == ["plain", "dens"]
    assert [line.split("|")[4].strip() for line in lines] == ["14.00", "12.60"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to report"),
        (["--splits", "id"], "must be SPLIT=PATH"),
        (["--paper", "oc22"], "nothing to report"),
    ],
)
def test_slips_on_the_command_line(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["report", "--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_trainer_validates_can_be_read(tmp_path):
    """One checkpoint on two sets of structures, as `dens validate` does it."""
    distutils.setup_env_local()
    folders = {}
    for number, split in enumerate(OC22):
        root = tmp_path / split
        sets = [random_structure(5, seed=10 * number + index, sid=index) for index in range(4)]
        write_lmdb(root / "train", sets)
        write_lmdb(root / "val", sets)
        config = base_config(root)
        metrics = ["mae", "cosine_similarity", "energy_forces_within_threshold"]
        config["evaluation_metrics"]["metrics"]["forces"] = metrics
        trainer = DeNSTrainer(**trainer_arguments(config, run_dir=root, identifier=f"tiny_{split}"))
        trainer.validate("val", disable_tqdm=True)
        (folders[split],) = root.glob("checkpoints/*")
        del trainer
        gc.collect()  # closes the data, which may be open only once in a process
    model = read_split_errors(folders)
    assert model.model == "tiny"
    assert missing_metrics([model]) == []
    assert 0.0 <= model.mean("energy_forces_within_threshold") <= 1.0
