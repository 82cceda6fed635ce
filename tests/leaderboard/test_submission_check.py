import hashlib

import numpy as np
import pytest
from submission_samples import (
    HUGGINGFACE,
    OC20,
    OC22,
    OC22_S2EF,
    S2EF,
    SIZE,
    load,
    save,
    structures,
    write_plain_lmdb,
    write_predictions,
    write_test_sets,
)

from dens_plugin.cli import main
from dens_plugin.leaderboard.check import verify
from dens_plugin.leaderboard.layout import TASKS
from dens_plugin.leaderboard.submission import make_submission


@pytest.fixture
def good(tmp_path):
    """A file of OC20 S2EF for EvalAI."""
    make_submission(write_predictions(tmp_path / "predictions"), tmp_path / "good.npz", S2EF)
    return tmp_path / "good.npz"


def findings(path, **options):
    return [str(finding.message) for finding in verify(path, any_size=True, **options).findings]


def changed(good, **arrays):
    """The file with other arrays; None takes one away."""
    merged = {**load(good), **arrays}
    return save(good.with_name("bad.npz"), {key: value for key, value in merged.items() if value is not None})


def test_a_good_file(good, tmp_path):
    verdict = verify(good, any_size=True, data=write_test_sets(tmp_path))
    assert verdict.findings == []
    assert verdict.rules.task.name == "oc20-s2ef"


def test_the_manifest_has_checksums_of_the_file_and_of_each_array(good):
    verdict, arrays = verify(good, any_size=True), load(good)
    assert verdict.sha256 == hashlib.sha256(good.read_bytes()).hexdigest()
    assert [entry.key for entry in verdict.entries] == list(TASKS["oc20-s2ef"].keys)
    for entry in verdict.entries:
        array = arrays[entry.key]
        assert entry.sha256 == hashlib.sha256(array.tobytes()).hexdigest()
        assert (entry.shape, entry.dtype) == (array.shape, str(array.dtype))
        assert entry.sha256 in str(verdict)


@pytest.mark.parametrize("task", ["oc20-s2ef", "oc20-is2re", "oc22-s2ef", "oc22-is2re"])
def test_the_task_is_told_from_the_keys(task, tmp_path):
    arrays = {key: np.array(["0", "1"]) if key.endswith("ids") else np.zeros(2) for key in TASKS[task].keys}
    assert verify(save(tmp_path / "file.npz", arrays)).rules.task.name == task


def test_the_sizes_of_the_test_sets(good):
    messages = [finding.message for finding in verify(good).findings]
    assert len(messages) == 4
    assert messages[3].startswith("ood_both: 12 structures, the test set of oc20-s2ef has 999,973")


def test_unknown_sizes_are_a_warning(tmp_path):
    arrays = {}
    for number, split in enumerate(OC22):
        ids = np.array([str(10 * number + index) for index in range(3)])
        arrays |= {f"{split}_ids": ids, f"{split}_energy": np.zeros(3)}
    verdict = verify(save(tmp_path / "file.npz", arrays))
    assert {finding.severity for finding in verdict.findings} == {"warning"}
    assert "compare by --data" in verdict.findings[0].message


def test_the_sizes_of_oc22_make_up_its_paper():
    """9,854,504 calculations, of which these were left for training and validation."""
    assert sum(TASKS["oc22-s2ef"].sizes.values()) + 8_225_293 + 394_727 + 450_669 == 9_854_504


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ood_cat_ids": None}, "no array 'ood_cat_ids'"),
        ({"ood_kat_ids": np.arange(3)}, "an array 'ood_kat_ids', which oc20-s2ef does not have; did you mean"),
        ({"id_energy": np.zeros(SIZE, np.int64)}, "id: energy must be floats"),
        ({"id_energy": np.full(SIZE, np.nan, np.float32)}, "id: energy has 12 values that are NaN"),
        ({"id_forces": np.full((3, 3), np.inf, np.float16)}, "id: chunk_idx must not fall and must lie within 0 and 3"),
        ({"id_chunk_idx": np.zeros(SIZE - 1, np.float32)}, "id: chunk_idx must be integers"),
        ({"id_ids": np.array(0)}, "id: ids must be text of shape (B,)"),
        ({"id_ids": np.array(["7_1"] * SIZE)}, "id: 1 ids come more than once: 7_1"),
        ({"id_ids": np.array([str(10 + index) for index in range(SIZE)])}, "id: ids must be sid_fid, 12 are not"),
    ],
)
def test_a_defect_is_one_error(good, change, message):
    (finding,) = verify(changed(good, **change), any_size=True).findings
    assert finding.severity == "error"
    assert message in finding.message


def test_infinite_forces_in_float16(good):
    forces = load(good)["id_forces"].astype(np.float16)
    forces[2, 1] = np.inf
    (message,) = findings(changed(good, id_forces=forces))
    name = load(good)["id_ids"][np.flatnonzero(load(good)["id_chunk_idx"] == 2)[0] + 1]
    assert f"id: forces has 1 values that are NaN or infinite, of {name};" in message
    assert "task.prediction_dtype: float32" in message


def test_the_same_split_twice(good):
    arrays = load(good)
    copied = {key.replace("ood_ads", "ood_cat"): arrays[key] for key in arrays if key.startswith("ood_ads")}
    assert findings(changed(good, **copied)) == [
        "ood_cat: the very same ids as split ood_ads: give each split its own predictions"
    ]


def test_what_only_looks_odd_is_a_warning(good):
    arrays = load(good)
    verdict = verify(changed(good, id_energy=arrays["id_energy"][:, None]), any_size=True)
    assert [finding.severity for finding in verdict.findings] == ["warning"]
    ids = arrays["id_ids"][[1, 0, *range(2, SIZE)]]
    verdict = verify(changed(good, id_ids=ids), any_size=True)
    assert [finding.severity for finding in verdict.findings] == ["warning"]
    assert "not sorted" in verdict.findings[0].message


class TestAgainstData:
    def test_another_data_set(self, good, tmp_path):
        (message,) = findings(good, data={"id": write_test_sets(tmp_path)["ood_ads"]})
        assert message.startswith("id: ids are not those of")
        assert "12 missing" in message

    def test_other_numbers_of_free_atoms(self, good, tmp_path):
        data = write_test_sets(tmp_path)
        chunks = load(good)["id_chunk_idx"]
        chunks[0] += 1
        (message,) = findings(changed(good, id_chunk_idx=chunks), data=data)
        assert "2 structures have another number of forces than free atoms" in message
        assert "first 0_0: 3 for 2" in message

    def test_atoms_are_compared_by_id_not_by_place(self, good, tmp_path):
        graphs = structures("id")[::-1]
        assert findings(good, data={"id": write_plain_lmdb(tmp_path / "reversed", graphs)}) == []

    def test_the_other_convention(self, good, tmp_path):
        data = write_test_sets(tmp_path)
        messages = findings(good, convention="huggingface", data=data)
        assert all("sid alone for huggingface" in message for message in messages)
        assert len(messages) == 4
        sources = write_predictions(tmp_path / "all", all_atoms=True)
        make_submission(sources, tmp_path / "hf.npz", HUGGINGFACE, data=data)
        assert findings(tmp_path / "hf.npz", convention="huggingface", data=data) == []
        assert "Hugging Face" in findings(tmp_path / "hf.npz")[0]

    def test_ids_with_frames_are_not_hugging_faces(self, good):
        """Told without data too, with some of them, and by the exit status."""
        messages = findings(good, convention="huggingface")
        assert all("sid alone for huggingface, 12 are sid_fid, as 0_0, 10_0, 11_0, ..." in m for m in messages[:1])
        assert all("error" in message or "sid_fid" in message for message in messages)

    def test_structures_without_sid(self, good, tmp_path):
        graphs = structures("id")
        del graphs[4]["sid"]
        with pytest.raises(ValueError, match="structure 4 has no sid"):
            findings(good, data={"id": write_plain_lmdb(tmp_path / "nameless", graphs)})

    def test_an_unknown_split(self, good):
        with pytest.raises(ValueError, match="unknown split 'ood' in --data for oc20-s2ef"):
            findings(good, data={"ood": "anything"})


def test_all_atoms_of_oc22_are_free(tmp_path):
    """Without fixed atoms both counts are the same, and nothing can be told apart."""
    graphs = {split: structures(split) for split in OC22}
    for graph in (graph for group in graphs.values() for graph in group):
        graph.fixed[:] = 0
    data = {split: write_plain_lmdb(tmp_path / split, group) for split, group in graphs.items()}
    sources = write_predictions(tmp_path / "predictions", OC22, all_atoms=True)
    make_submission(sources, tmp_path / "out.npz", OC22_S2EF, data=data)
    assert findings(tmp_path / "out.npz", data=data) == []


def test_exit_status(good, tmp_path, capsys):
    main(["submission", "verify", str(good), "--any-size"])
    assert "judged as   oc20-s2ef for evalai" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["submission", "verify", str(good)])
    assert caught.value.code == 1
    assert capsys.readouterr().out.count("  error: ") == len(OC20)
    good.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(SystemExit) as caught:
        main(["submission", "verify", str(good)])
    assert caught.value.code == 2
    assert "no whole .npz file" in capsys.readouterr().err
