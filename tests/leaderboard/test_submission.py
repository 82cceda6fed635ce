import argparse
import gc
import resource

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.common import distutils
from fairchem.core.scripts import make_submission_file as host_script
from samples import base_config, trainer_arguments
from submission_samples import (
    HUGGINGFACE,
    IS2RE,
    OC20,
    OC22,
    OC22_S2EF,
    S2EF,
    SIZE,
    blocks,
    load,
    predicted,
    save,
    write_predictions,
    write_test_sets,
)

from dens_plugin.cli import main
from dens_plugin.leaderboard.check import verify
from dens_plugin.leaderboard.layout import TASKS, paths_by_split, rules_of
from dens_plugin.leaderboard.submission import make_submission
from dens_plugin.training.trainer import DeNSTrainer


@pytest.fixture
def sources(tmp_path):
    return write_predictions(tmp_path / "predictions")


def refused(sources, rules=S2EF, **options):
    """The message with which nothing is written."""
    folder = sources["id"].parent.parent
    before = sorted(folder.rglob("*"))
    with pytest.raises((ValueError, OSError)) as caught:
        make_submission(sources, folder / "out.npz", rules, **options)
    assert sorted(folder.rglob("*")) == before
    return str(caught.value)


def changed(sources, **arrays):
    """The predictions of ood_cat with other arrays."""
    save(sources["ood_cat"], {**predicted("ood_cat"), **arrays})
    return sources


def test_the_file_is_fairchems_with_flat_energies(sources, tmp_path):
    """fairchem's own script is the specification of EvalAI's files."""
    paths = {split: str(path) for split, path in sources.items()}
    options = {"dataset": "OC20", "is2re_relaxations": False, "hybrid": False, "out_path": str(tmp_path / "host.npz")}
    host_script.main(argparse.Namespace(**paths, **options))
    make_submission(sources, tmp_path / "ours.npz", S2EF)
    ours, host = load(tmp_path / "ours.npz"), load(tmp_path / "host.npz")
    assert set(ours) == set(host) == set(TASKS["oc20-s2ef"].keys)
    for key in host:
        assert ours[key].dtype == host[key].dtype
        assert np.array_equal(ours[key], host[key].ravel() if key.endswith("energy") else host[key])


def test_what_the_trainer_predicts_can_be_submitted(tmp_path):
    """From a model to a file, for the smaller of the two leaderboards."""
    distutils.setup_env_local()
    write_test_sets(tmp_path, ("id", "ood"))
    write_test_sets(tmp_path / "seen", ("id", "ood"))
    sources = {}
    for split in OC22:
        config = base_config(tmp_path)
        seen = tmp_path / "seen" / "data"
        config["dataset"] = {**config["dataset"], "test": {"src": str(tmp_path / "data" / split)}}
        config["dataset"]["train"]["src"], config["dataset"]["val"]["src"] = str(seen / "id"), str(seen / "ood")
        trainer = DeNSTrainer(**trainer_arguments(config, run_dir=tmp_path / split))
        trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
        (sources[split],) = (tmp_path / split).glob("results/*/ocp_predictions.npz")
        del trainer
        gc.collect()  # closes the data, which may be open only once in a process
    data = {split: tmp_path / "data" / split for split in OC22}
    assert make_submission(sources, tmp_path / "out.npz", OC22_S2EF, data=data) == {"id": SIZE, "ood": SIZE}
    assert verify(tmp_path / "out.npz", data=data, any_size=True).findings == []


def test_sorting_keeps_structures_together(sources, tmp_path):
    order = np.random.default_rng(0).permutation(SIZE)
    whole = predicted("id")
    each = blocks(whole["ids"], whole["forces"], whole["chunk_idx"])
    ids = whole["ids"][order]
    forces = [each[name] for name in ids.tolist()]
    rows = [len(part) for part in forces]
    save(
        sources["id"],
        {
            "ids": ids,
            "energy": whole["energy"][order],
            "forces": np.concatenate(forces),
            "chunk_idx": np.cumsum(rows)[:-1],
        },
    )
    make_submission(sources, tmp_path / "out.npz", S2EF)
    made = load(tmp_path / "out.npz")
    assert np.array_equal(made["id_ids"], whole["ids"])
    assert np.array_equal(made["id_energy"], whole["energy"].ravel())
    assert np.array_equal(made["id_forces"], whole["forces"])
    assert np.array_equal(made["id_chunk_idx"], whole["chunk_idx"])


def test_the_same_predictions_make_the_same_file(sources, tmp_path):
    for name in ("one.npz", "two.npz"):
        make_submission(sources, tmp_path / name, S2EF)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_float16_is_kept_where_it_is_allowed(tmp_path):
    make_submission(write_predictions(tmp_path, dtype=np.float16), tmp_path / "out.npz", S2EF)
    assert load(tmp_path / "out.npz")["id_forces"].dtype == np.float16


class TestHuggingFace:
    def test_ids_are_sids_and_all_atoms_are_there(self, tmp_path):
        data, sources = write_test_sets(tmp_path), write_predictions(tmp_path / "predictions", all_atoms=True)
        make_submission(sources, tmp_path / "out.npz", HUGGINGFACE, data=data)
        made, whole = load(tmp_path / "out.npz"), predicted("ood_ads", all_atoms=True)
        ours = blocks(*(made[f"ood_ads_{field}"] for field in ("ids", "forces", "chunk_idx")))
        theirs = blocks(whole["ids"], whole["forces"], whole["chunk_idx"])
        assert set(ours) == {str(100 + index) for index in range(SIZE)}
        assert all(np.array_equal(ours[name.split("_")[0]], theirs[name]) for name in theirs)

    def test_forces_of_free_atoms_only(self, tmp_path):
        data, sources = write_test_sets(tmp_path), write_predictions(tmp_path / "predictions")
        message = refused(sources, HUGGINGFACE, data=data)
        assert "forces of free atoms only" in message
        assert "--task.predict_fixed_atoms=True" in message

    def test_forces_of_all_atoms_where_free_ones_are_wanted(self, tmp_path):
        data, sources = write_test_sets(tmp_path), write_predictions(tmp_path / "predictions", all_atoms=True)
        assert "evalai wants those of free atoms only" in refused(sources, data=data)

    def test_needs_the_data(self, sources):
        message = refused(sources, HUGGINGFACE)
        assert "add --data id=PATH ood_ads=PATH ood_cat=PATH ood_both=PATH" in message

    def test_several_frames_of_a_system(self, sources, tmp_path):
        data = write_test_sets(tmp_path)
        ids = np.array([f"{index // 2}_{index % 2}" for index in range(SIZE)])
        save(sources["id"], {**predicted("id"), "ids": ids})
        assert "6 ids come more than once" in refused(sources, HUGGINGFACE, data=data)

    def test_has_no_oc22(self):
        with pytest.raises(ValueError, match="Hugging Face has no 'oc22-s2ef'"):
            rules_of("oc22-s2ef", "huggingface")


class TestRelaxedEnergies:
    """The three sources of IS2RE say the same."""

    @pytest.fixture
    def relaxed(self, tmp_path):
        """Split -> the file of a relaxation, with what else may be in it."""
        (tmp_path / "relaxed").mkdir()
        return {split: save(tmp_path / "relaxed" / f"{split}.npz", self.result(split)) for split in OC20}

    def result(self, split):
        whole = predicted(split)
        sids = [name.split("_")[0] for name in whole["ids"].tolist()]
        extra = {"converged": np.ones(SIZE, bool), "fmax": np.zeros(SIZE), "steps": np.arange(SIZE)}
        extra |= {"forces": np.zeros((5 * SIZE, 3)), "chunk_idx": 5 * np.arange(1, SIZE)}  # of the last frames
        return {"ids": np.array(sids), "energy": whole["energy"].ravel().astype(np.float64), **extra}

    def trajectories(self, folder, split):
        folder.mkdir(parents=True)
        result = self.result(split)
        for sid, energy in zip(result["ids"].tolist(), result["energy"].tolist(), strict=True):
            frames = [Atoms("H"), Atoms("H")]
            for atoms, value in zip(frames, (energy + 1.0, energy), strict=True):
                atoms.calc = SinglePointCalculator(atoms, energy=value, forces=np.zeros((1, 3)))
            ase.io.write(folder / f"{sid}.traj", frames)
        return folder

    def made(self, sources, out):
        make_submission(sources, out, IS2RE)
        return load(out)

    def test_relaxations(self, relaxed, tmp_path):
        made = self.made(relaxed, tmp_path / "out.npz")
        assert set(made) == set(TASKS["oc20-is2re"].keys)
        assert np.array_equal(made["ood_both_energy"], self.result("ood_both")["energy"])

    def test_last_energies_of_trajectories(self, relaxed, tmp_path):
        folders = {split: self.trajectories(tmp_path / "traj" / split, split) for split in OC20}
        ours, theirs = self.made(folders, tmp_path / "a.npz"), self.made(relaxed, tmp_path / "b.npz")
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)

    def test_energies_of_another_model(self, relaxed, sources, tmp_path):
        ours, theirs = self.made(sources, tmp_path / "a.npz"), self.made(relaxed, tmp_path / "b.npz")
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)

    def test_ids_are_compared_with_the_data(self, relaxed, tmp_path):
        make_submission(relaxed, tmp_path / "whole.npz", IS2RE, data=write_test_sets(tmp_path))
        cut = self.result("id")
        save(relaxed["id"], {key: value[1:] for key, value in cut.items()})
        assert f"1 missing ({cut['ids'][0]})" in refused(relaxed, IS2RE, data={"id": tmp_path / "data" / "id"})

    def test_a_broken_trajectory(self, relaxed, tmp_path):
        folder = self.trajectories(tmp_path / "traj", "id")
        broken = sorted(folder.iterdir())[3]
        broken.write_bytes(broken.read_bytes()[:40])
        assert f"'{broken}' has no readable last frame" in refused({**relaxed, "id": folder}, IS2RE)

    def test_an_empty_folder(self, relaxed, tmp_path):
        (tmp_path / "traj").mkdir()
        assert "holds no .traj or .extxyz file" in refused({**relaxed, "id": tmp_path / "traj"}, IS2RE)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ids": np.array(["200_0"] * SIZE)}, "1 ids come more than once: 200_0"),
            ({"ids": np.arange(SIZE)}, "ids must be text"),
            ({"ids": np.array([str(200 + index) for index in range(SIZE)])}, "convention of Hugging Face"),
            ({"energy": np.full(SIZE, np.nan)}, "energy has 12 values that are NaN or infinite"),
            ({"energy": np.zeros(SIZE - 1)}, "energy must be floats of shape (12,)"),
            ({"energy": np.full(SIZE, np.inf, np.float16)}, "float16 ends at 65,504: predict again with"),
            ({"forces": np.zeros((5, 2))}, "forces must be floats of shape (M, 3)"),
            ({"chunk_idx": np.arange(SIZE)}, "chunk_idx must be integers of shape (11,)"),
            ({"chunk_idx": np.arange(SIZE - 1)[::-1]}, "chunk_idx must not fall"),
            ({"chunk_idx": np.full(SIZE - 1, 10**6)}, "chunk_idx must not fall and must lie within 0 and"),
            ({"forces": np.array([np.zeros((2, 3)), np.zeros((1, 3))], dtype=object)}, "holds Python objects"),
            (predicted("id"), "the very same ids as split id"),
        ],
    )
    def test_bad_arrays(self, sources, change, message):
        text = refused(changed(sources, **change))
        assert message in text
        assert "ood_cat" in text

    def test_energies_without_forces(self, sources):
        save(sources["ood_cat"], {key: predicted("ood_cat")[key] for key in ("ids", "energy")})
        assert "has no array 'forces', only ids, energy" in refused(sources)

    def test_oc22_in_float16(self, tmp_path):
        sources = write_predictions(tmp_path / "predictions", OC22, dtype=np.float16)
        assert "too coarse for total energies" in refused(sources, OC22_S2EF)

    def test_predictions_of_another_data_set(self, sources, tmp_path):
        message = refused(sources, data={"id": write_test_sets(tmp_path)["ood_cat"]})
        assert "12 missing (200_0" in message
        assert "12 not in it (0_0" in message

    def test_not_the_test_set(self, sources):
        message = refused(sources, rules_of("oc20-s2ef", "evalai"))
        assert "12 structures, the test set of oc20-s2ef has 999,736" in message
        assert "--any-size" in message

    def test_a_missing_split(self, sources):
        del sources["ood_cat"]
        assert "add ood_cat=PATH" in refused(sources)

    def test_a_split_of_another_data_set(self, sources):
        assert "did you mean 'ood_cat'" in refused({**sources, "ood_kat": sources["id"]})

    def test_no_such_file(self, sources, tmp_path):
        assert "there is no file" in refused({**sources, "id": sources["id"].with_name("gone.npz")})

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_truncated_file(self, sources, share):
        whole = sources["ood_cat"].read_bytes()
        sources["ood_cat"].write_bytes(whole[: int(share * len(whole))])
        assert "no whole .npz file" in refused(sources)

    def test_a_damaged_file(self, sources):
        whole = bytearray(sources["ood_cat"].read_bytes())
        whole[len(whole) // 2] ^= 0xFF
        sources["ood_cat"].write_bytes(whole)
        assert "no whole .npz file" in refused(sources)

    @pytest.mark.parametrize("content", [b"ids: 1", b"\x80\x04N."])
    def test_another_kind_of_file(self, sources, content):
        sources["id"].write_bytes(content)
        assert "no whole .npz file" in refused(sources)

    def test_a_single_array(self, sources):
        with open(sources["id"], "wb") as file:
            np.save(file, np.zeros(3))
        assert "holds a single array" in refused(sources)


class TestWriting:
    def test_an_existing_file_stays(self, sources, tmp_path):
        (tmp_path / "out.npz").write_text("precious")
        assert "add --overwrite" in refused(sources)
        assert (tmp_path / "out.npz").read_text() == "precious"
        make_submission(sources, tmp_path / "out.npz", S2EF, overwrite=True)
        assert verify(tmp_path / "out.npz", any_size=True).findings == []

    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, sources, tmp_path):
        (tmp_path / "out.npz").write_text("precious")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # no file may grow beyond
        try:
            message = refused(sources, overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "cannot be written" in message
        assert "make room" in message
        assert (tmp_path / "out.npz").read_text() == "precious"

    def test_a_folder_that_is_made(self, sources, tmp_path):
        make_submission(sources, tmp_path / "new" / "out.npz", S2EF)
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.npz"]

    @pytest.mark.parametrize(("name", "message"), [("out", "must end in .npz"), ("folder.npz", "is a folder")])
    def test_impossible_names(self, sources, tmp_path, name, message):
        (tmp_path / "folder.npz").mkdir()
        with pytest.raises(ValueError, match=message):
            make_submission(sources, tmp_path / name, S2EF)


class TestCommandLine:
    def arguments(self, sources, *more):
        return ["submission", "make", *(f"{split}={path}" for split, path in sources.items()), *map(str, more)]

    def test_make_and_verify(self, sources, tmp_path, capsys):
        data = [f"{split}={path}" for split, path in write_test_sets(tmp_path).items()]
        out = tmp_path / "out.npz"
        main(self.arguments(sources, "--task", "oc20-s2ef", "--out", out, "--any-size", "--data", *data))
        assert "structures: id 12, ood_ads 12" in capsys.readouterr().out
        main(["submission", "verify", str(out), "--any-size", "--data", *data])
        assert "No defects found." in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--task", "oc20-s2e"], "unknown task 'oc20-s2e'; did you mean 'oc20-s2ef'?"),
            (["--task", "oc22-s2ef"], "oc22-s2ef has no split 'ood_ads'"),
            (["--task", "oc20-s2ef", "--convention", "hugingface"], "did you mean 'huggingface'?"),
            (["--task", "oc20-s2ef", "--data", "idd=x"], "did you mean 'id'?"),
            (["--task", "oc20-s2ef", "--data", "id"], "must be SPLIT=PATH"),
            (["--task", "oc20-s2ef", "--data", "id=nowhere"], "nowhere does not exist"),
            ([], "required: --task"),
        ],
    )
    def test_slips(self, sources, tmp_path, capsys, more, message):
        with pytest.raises(SystemExit) as caught:
            main(self.arguments(sources, "--out", tmp_path / "out.npz", "--any-size", *more))
        assert caught.value.code == 2
        assert message in capsys.readouterr().err

    def test_a_path_for_two_splits(self):
        with pytest.raises(ValueError, match="repeats a split or a path"):
            paths_by_split(["id=a.npz", "ood=a.npz"], "source")
        with pytest.raises(ValueError, match="repeats a split or a path"):
            paths_by_split(["id=a.npz", "id=b.npz"], "source")
