import argparse
import json
import lzma
import os
import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase.build import graphene, molecule, mx2, nanotube
from ase.neighborlist import neighbor_list
from fairchem.core.datasets import LmdbDataset

from dens_plugin.data import oc20
from dens_plugin.data.lmdb_file import LmdbWriter, require_whole_lmdb
from dens_plugin.data.oc20 import convert
from dens_plugin.data.raw_graphs import _periodic
from dens_plugin.data.release import raw_files, read_frames, read_log

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "oc20_mini" / "s2ef" / "val_id"


def read(folder):
    dataset = LmdbDataset({"src": str(folder)})
    return [dataset[i] for i in range(len(dataset))]


def labelled_frames(raw):
    return [
        (atoms, line)
        for pair in raw_files(raw)
        for atoms, line in zip(read_frames(pair.frames), read_log(pair.log, need_reference=False), strict=True)
    ]


def assert_same_graphs(ours, others):
    assert len(ours) == len(others)
    for one, other in zip(ours, others, strict=True):
        assert one.to_dict().keys() == other.to_dict().keys()
        for name, value in one.to_dict().items():
            equal = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
            assert equal, name


@pytest.fixture
def raw(release, tmp_path):
    """A copy of one split, unpacked, to spoil."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for path in (release / "train").iterdir():
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return folder


def edit(path, change):
    path.write_text(change(path.read_text()))


def assert_nothing_to_mistake(out):
    """No folder OUT, and nothing unfinished under an LMDB's name."""
    assert not out.exists()
    part = out.with_name(out.name + ".part")
    if part.exists():
        assert not (part / "metadata.npz").exists()
        assert not list(part.glob("*.lmdb.part"))
        for path in part.glob("*.lmdb"):
            require_whole_lmdb(path)


def test_labels_are_those_of_the_release(release, converted):
    graphs, frames = read(converted), labelled_frames(release / "train")
    assert len(graphs) == len(frames)
    for graph, (atoms, line) in zip(graphs, frames, strict=True):
        assert (graph.sid, graph.fid) == (line.sid, line.fid)
        assert graph.energy == pytest.approx(atoms.get_potential_energy() - line.reference, abs=1e-9)
        expected = torch.tensor(atoms.get_forces(apply_constraint=False), dtype=torch.float32)
        assert torch.equal(graph.forces, expected)
        assert graph.tags.dtype == torch.long
        assert graph.tags.tolist() == atoms.get_tags().tolist()
        assert graph.fixed.nonzero().flatten().tolist() == atoms.constraints[0].index.tolist()
        assert graph.atomic_numbers.tolist() == atoms.numbers.tolist()
        assert "edge_index" not in graph


def test_metadata_and_log_follow_the_data_set(converted):
    dataset = LmdbDataset({"src": str(converted)})
    graphs = [dataset[i] for i in range(len(dataset))]
    assert dataset._metadata["natoms"].tolist() == [graph.natoms for graph in graphs]
    lines = "".join(path.read_text() for path in sorted(converted.glob("data_log.*.txt"))).splitlines()
    assert lines == [f"random{graph.sid},frame{graph.fid}" for graph in graphs]
    assert not list(converted.glob("*.part"))
    assert not list(converted.glob("shard.*"))


def test_result_does_not_depend_on_workers(release, converted, tmp_path):
    convert(release / "train", tmp_path / "out", workers=2, progress=False)
    assert_same_graphs(read(tmp_path / "out"), read(converted))


def test_several_files_share_a_shard_when_there_are_many(release, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(oc20, "_MAX_SHARDS", 2)
    convert(release / "train", tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out").glob("*.lmdb"))) == 2
    dropped = [graph.to_dict() for graph in read(tmp_path / "out")]
    expected = [graph.to_dict() for graph in read(converted)]
    assert [(d["sid"], d["fid"]) for d in dropped] == [(d["sid"], d["fid"]) for d in expected]


def test_files_are_taken_by_number(raw, tmp_path):
    for kind in ("extxyz", "txt"):
        (raw / f"0.{kind}").rename(raw / f"10.{kind}")
    convert(raw, tmp_path / "out", progress=False)
    sids = [graph.sid for graph in read(tmp_path / "out")]
    assert list(dict.fromkeys(sids)) == [1, 2, 0]


def test_energies_stay_without_references(release, tmp_path):
    convert(release / "val_ood", tmp_path / "out", ref_energy=False, progress=False)
    energies = [graph.energy for graph in read(tmp_path / "out")]
    assert energies == [atoms.get_potential_energy() for atoms, _ in labelled_frames(release / "val_ood")]


def test_test_sets_need_no_labels(raw, tmp_path):
    for path in raw.glob("*.txt"):
        edit(path, lambda text: "".join(line.rsplit(",", 1)[0] + "\n" for line in text.splitlines()))
    for path in raw.glob("*.extxyz"):
        edit(path, lambda text: text.replace(":forces:", ":ignored:").replace("energy=", "hidden="))
    with pytest.raises(ValueError, match=r"0\.txt, line 1: no reference energy .* --test-data"):
        convert(raw, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"frame 0 \(sid 0, fid 0\) has no energy.*--test-data"):
        convert(raw, tmp_path / "out2", ref_energy=False, progress=False)
    convert(raw, tmp_path / "out3", test=True, progress=False)
    graph = read(tmp_path / "out3")[0]
    assert "energy" not in graph
    assert "forces" not in graph


def test_resumes_after_an_interruption(release, converted, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    read_graphs = oc20.read_graphs

    def interrupted(pair, options):
        seen.append(pair.frames.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return read_graphs(pair, options)

    monkeypatch.setattr(oc20, "read_graphs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(release / "train", out, progress=False)
    assert_nothing_to_mistake(out)
    assert len(list((tmp_path / "out.part").glob("*.lmdb"))) == 2
    (tmp_path / "out.part" / "data.0002.lmdb.part").write_bytes(b"left by a kill -9")
    convert(release / "train", out, progress=False)
    assert seen == ["0.extxyz.xz", "1.extxyz.xz", "2.extxyz.xz", "2.extxyz.xz"]
    assert_same_graphs(read(out), read(converted))
    assert not (tmp_path / "out.part").exists()


def test_a_repaired_file_costs_only_its_own_shard(raw, tmp_path, monkeypatch):
    whole = (raw / "1.extxyz").read_text()
    edit(raw / "1.extxyz", lambda text: text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"1\.extxyz"):
        convert(raw, tmp_path / "out", progress=False)
    assert_nothing_to_mistake(tmp_path / "out")
    (raw / "1.extxyz").write_text(whole)
    seen = []
    read_graphs = oc20.read_graphs
    monkeypatch.setattr(oc20, "read_graphs", lambda pair, o: seen.append(pair.log.name) or read_graphs(pair, o))
    convert(raw, tmp_path / "out", progress=False)
    assert seen == ["1.txt", "2.txt"]


def test_a_second_run_does_nothing(release, converted, capsys):
    before = {path: path.stat().st_mtime_ns for path in converted.iterdir()}
    convert(release / "train", converted, progress=False)
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in converted.iterdir()}


def test_refuses_an_out_made_otherwise(release, converted, tmp_path):
    with pytest.raises(ValueError, match=r"other options \(ref_energy: True then, False now\).*delete that folder"):
        convert(release / "train", converted, ref_energy=False)
    with pytest.raises(ValueError, match="from other files"):
        convert(release / "val_id", converted)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.0000.lmdb").touch()
    with pytest.raises(ValueError, match="was not made by `dens data oc20`"):
        convert(release / "train", tmp_path / "out")


def test_refuses_to_resume_with_other_options(release, tmp_path):
    part = tmp_path / "out.part"
    part.mkdir()
    manifest = oc20._manifest(raw_files(release / "train"), oc20.Options(ref_energy=False))
    (part / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"out\.part was made with other options"):
        convert(release / "train", tmp_path / "out")


@pytest.mark.parametrize(
    "open_frame",
    [graphene(), mx2(vacuum=4.0), nanotube(4, 0), molecule("H2O")],
    ids=["sheet", "layer", "tube", "molecule"],
)
def test_open_directions_get_vacuum(open_frame):
    """OC20's structures are periodic in all directions: neighbours are those of the open structure."""
    whole = _periodic(open_frame, "a frame")
    assert whole.pbc.all()
    assert np.array_equal(whole.positions, open_frame.positions)
    numbers, expected = (np.sort(neighbor_list("d", atoms, 12.0)) for atoms in (whole, open_frame))
    assert numbers == pytest.approx(expected)


def test_flat_crystals_are_refused():
    sheet = graphene()
    sheet.pbc = True
    with pytest.raises(ValueError, match=r"a frame is periodic and its cell has no volume"):
        _periodic(sheet, "a frame")


def nan_force(text):
    lines = text.splitlines()
    lines[3] = " ".join([*lines[3].split()[:-1], "nan"])
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "raw is not a folder: give the folder"),
        (lambda raw: [path.unlink() for path in raw.iterdir()], FileNotFoundError, r"raw holds no N\.extxyz"),
        (lambda raw: (raw / "1.txt").unlink(), FileNotFoundError, r"1\.extxyz has no 1\.txt"),
        (lambda raw: (raw / "1.extxyz").unlink(), FileNotFoundError, r"1\.txt has no 1\.extxyz"),
        (
            lambda raw: edit(raw / "1.txt", lambda text: text + "random1,frame99,0.5\n"),
            ValueError,
            r"1\.extxyz has 7 frames, .*1\.txt has 8 lines",
        ),
        (
            lambda raw: edit(raw / "2.txt", lambda text: text.replace("frame1,", "fram1,")),
            ValueError,
            r"2\.txt, line 2: cannot read 'random2,fram1",
        ),
        (
            lambda raw: edit(raw / "2.txt", lambda text: text.replace("frame1,", "frame1,x")),
            ValueError,
            r"2\.txt, line 2: the reference energy 'x.*' is not a finite number",
        ),
        (
            lambda raw: edit(raw / "0.extxyz", lambda text: text.replace(":forces:", ":other:")),
            ValueError,
            r"0\.extxyz, frame 0 \(sid 0, fid 0\) has no forces.*--test-data",
        ),
        (
            lambda raw: edit(raw / "0.extxyz", nan_force),
            ValueError,
            r"0\.extxyz, frame 0 \(sid 0, fid 0\) has NaN or infinite forces",
        ),
        (
            lambda raw: edit(raw / "0.extxyz", lambda text: text.replace("energy=", "energy=inf was=", 1)),
            ValueError,
            r"0\.extxyz, frame 0 \(sid 0, fid 0\) has NaN or infinite energy",
        ),
    ],
    ids=[
        "no folder",
        "no frames",
        "no log",
        "log only",
        "more lines than frames",
        "unreadable line",
        "unreadable reference",
        "no forces",
        "NaN forces",
        "infinite energy",
    ],
)
def test_bad_input_is_named(raw, tmp_path, spoil, error, message):
    spoil(raw)
    with pytest.raises(error, match=message):
        convert(raw, tmp_path / "out", progress=False)
    assert_nothing_to_mistake(tmp_path / "out")


def without_forces(text, *, named):
    """The frames without the columns of the forces, which Properties still name or not."""
    text = text if named else text.replace(":forces:R:3", "")
    rows = (line.split() for line in text.splitlines())
    return "".join(" ".join(row[:6] if len(row) == 9 and row[4] in "TF" else row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (False, r"0\.extxyz, frame 0 \(sid 0, fid 0\) has no forces\. .*--test-data"),
        (True, r"0\.extxyz, frame 0 has no values for forces, which its Properties name.*--test-data"),
    ],
    ids=["without the name", "with the name"],
)
def test_missing_forces_are_named(raw, tmp_path, named, message):
    edit(raw / "0.extxyz", lambda text: without_forces(text, named=named))
    with pytest.raises(ValueError, match=message):
        convert(raw, tmp_path / "out", progress=False)


def test_all_missing_labels_are_named(raw, tmp_path):
    edit(raw / "0.extxyz", lambda text: without_forces(text, named=False).replace("energy=", "hidden="))
    with pytest.raises(ValueError, match=r"has no energy and no forces\. .*--test-data"):
        convert(raw, tmp_path / "out", progress=False)


def test_a_row_cut_short_is_not_taken_for_a_test_set(raw, tmp_path):
    edit(raw / "0.extxyz", lambda text: text[: text.rindex(" ")])
    with pytest.raises(ValueError, match=r"0\.extxyz is not a whole extended XYZ file"):
        convert(raw, tmp_path / "out", progress=False)


@pytest.mark.parametrize("kind", ["extxyz", "txt"])
def test_a_file_that_is_there_packed_and_unpacked_is_refused(release, raw, tmp_path, kind):
    shutil.copy(release / "train" / f"0.{kind}.xz", raw)
    with pytest.raises(ValueError, match=rf"raw holds both 0\.{kind} and 0\.{kind}\.xz.*remove the other"):
        convert(raw, tmp_path / "out", progress=False)


def test_an_impossible_out_is_refused_before_the_work(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(oc20, "read_log", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"out cannot be made because .*0\.txt is not a folder: give another one"):
        convert(raw, raw / "0.txt" / "out", progress=False)
    with pytest.raises(ValueError, match=r"/proc/foo cannot be made because .* the folder /(proc)? \(.*give a folder"):
        convert(raw, "/proc/foo", progress=False)


@pytest.mark.parametrize("name", ["0.extxyz.xz", "0.txt.xz"])
def test_a_truncated_xz_is_named(release, tmp_path, name):
    raw = shutil.copytree(release / "train", tmp_path / "raw")
    whole = (raw / name).read_bytes()
    (raw / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is truncated or no xz file"):
        convert(raw, tmp_path / "out", progress=False)
    assert_nothing_to_mistake(tmp_path / "out")


def test_bad_logs_show_before_any_frames_are_read(raw, tmp_path, monkeypatch):
    edit(raw / "2.txt", lambda text: "nonsense\n")
    monkeypatch.setattr(oc20, "read_graphs", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match="nonsense"):
        convert(raw, tmp_path / "out", progress=False)


def test_names_the_splits_of_a_parent_folder(release, tmp_path):
    with pytest.raises(FileNotFoundError, match="sub-folders train, val_id, val_ood"):
        convert(release, tmp_path / "out")


def test_an_error_in_a_worker_arrives_as_it_is(raw, tmp_path):
    edit(raw / "0.extxyz", nan_force)
    with pytest.raises(ValueError, match="NaN or infinite forces"):
        convert(raw, tmp_path / "out", workers=2, progress=False)
    assert_nothing_to_mistake(tmp_path / "out")


def die(pair, options):
    os._exit(9)


def test_a_killed_worker_is_reported(release, tmp_path, monkeypatch):
    monkeypatch.setattr(oc20, "read_graphs", die)
    with pytest.raises(RuntimeError, match="fewer --workers"):
        convert(release / "train", tmp_path / "out", workers=2, progress=False)
    assert_nothing_to_mistake(tmp_path / "out")


def test_command_line(release, tmp_path):
    parser = argparse.ArgumentParser()
    oc20.add_arguments(parser)
    out = str(tmp_path / "out")
    oc20.run(parser.parse_args([str(release / "val_id"), out, "--workers", "1", "--no-ref-energy", "--quiet"]))
    assert len(read(out)) == len(labelled_frames(release / "val_id"))


def test_whole_and_truncated_lmdb(converted, tmp_path):
    require_whole_lmdb(converted)
    path = tmp_path / "data.0000.lmdb"
    whole = (converted / "data.0000.lmdb").read_bytes()
    for size in (len(whole) - 4096, 8192, 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"data\.0000\.lmdb.*Copy it again"):
            require_whole_lmdb(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.lmdb"):
        require_whole_lmdb(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        require_whole_lmdb(path)


def _write_until_error(path):
    with LmdbWriter(path) as writer:
        writer.append(np.zeros(10))
        raise KeyError


def test_writer_removes_its_file_when_the_disk_is_full(tmp_path, monkeypatch):
    def fail(writer):
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(LmdbWriter, "_commit", fail)
    with pytest.raises(lmdb.DiskError), LmdbWriter(tmp_path / "data.0000.lmdb"):
        pass
    assert not list(tmp_path.iterdir())


def test_writer_grows_and_removes_what_it_does_not_finish(tmp_path, monkeypatch):
    monkeypatch.setattr("dens_plugin.data.lmdb_file._FIRST_MAP_SIZE", 1 << 16)
    monkeypatch.setattr("dens_plugin.data.lmdb_file._COMMIT_BYTES", 1 << 14)
    path = tmp_path / "data.0000.lmdb"
    with pytest.raises(KeyError):
        _write_until_error(path)
    assert not list(tmp_path.iterdir())
    with LmdbWriter(path) as writer:
        for i in range(100):
            writer.append(torch.full((1000,), float(i)))
    assert path.stat().st_size < 2_000_000
    require_whole_lmdb(path)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/oc20_mini, real OC20 frames that are not committed")
def test_real_frames(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    smallest = min(raw_files(REAL), key=lambda pair: pair.frames.stat().st_size)
    for path in smallest:
        shutil.copy(path, raw)
    convert(raw, tmp_path / "out", progress=False)
    frames = labelled_frames(raw)
    for graph, (atoms, line) in zip(read(tmp_path / "out"), frames, strict=True):
        assert graph.energy == pytest.approx(atoms.get_potential_energy() - line.reference, abs=1e-9)
        assert graph.fixed.sum() == len(atoms.constraints[0].index)


def test_a_file_that_this_process_has_open_is_let_pass(converted):
    dataset = LmdbDataset({"src": str(converted)})
    require_whole_lmdb(converted)
    assert dataset[0].sid == 0
