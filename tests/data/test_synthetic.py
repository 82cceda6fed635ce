import argparse
import re

import ase.io
import numpy as np
import pytest

from dens_plugin.data import slabs, synthetic
from dens_plugin.data.release import raw_files, read_frames, read_log
from dens_plugin.data.synthetic import generate


def all_frames(folder):
    """(sid, fid) -> (structure, reference energy) of one split."""
    return {
        (line.sid, line.fid): (atoms, line.reference)
        for pair in raw_files(folder)
        for atoms, line in zip(read_frames(pair.frames), read_log(pair.log, need_reference=True), strict=True)
    }


def test_splits_hold_out_frames_of_train_and_other_systems(release):
    train, val_id, val_ood = (all_frames(release / split) for split in ("train", "val_id", "val_ood"))
    assert train
    assert val_id
    assert not train.keys() & val_id.keys()
    assert {sid for sid, _ in val_id} == {sid for sid, _ in train}
    assert not {sid for sid, _ in val_ood} & {sid for sid, _ in train}
    for sid in {sid for sid, _ in train}:
        fids = sorted(fid for s, fid in [*train, *val_id] if s == sid)
        assert fids == list(range(len(fids)))


def test_frames_look_like_oc20(release):
    for atoms, _ in all_frames(release / "train").values():
        tags, forces = atoms.get_tags(), atoms.get_forces(apply_constraint=False)
        fixed = np.zeros(len(atoms), dtype=bool)
        fixed[atoms.constraints[0].index] = True
        np.testing.assert_array_equal(fixed, tags == 0)
        assert set(tags) == {0, 1, 2}
        assert set(atoms.symbols[tags == 2]) <= set("HCNO")
        assert atoms.positions[tags == 0, 2].max() < atoms.positions[tags == 1, 2].min()
        assert atoms.pbc.all()
        assert 18 <= len(atoms) <= 40
        assert np.linalg.norm(forces, axis=1).max() <= 25.0
        assert np.abs(forces[fixed]).max() > 0, "OC20 keeps the forces of fixed atoms"


def test_fixed_atoms_stay_and_the_energy_falls(release):
    frames = all_frames(release / "val_ood")
    first, last = frames[min(frames)][0], frames[max(frames)][0]
    fixed = first.get_tags() == 0
    np.testing.assert_allclose(first.positions[fixed], last.positions[fixed])
    assert last.get_potential_energy() < first.get_potential_energy()


def test_referenced_energies_are_of_order_ev(release):
    energies = [atoms.get_potential_energy() - ref for atoms, ref in all_frames(release / "train").values()]
    assert np.abs(energies).max() < 25.0
    assert np.median(np.abs(energies)) < 5.0


def test_references_are_a_sum_over_elements(release):
    frames = [frame for split in ("train", "val_ood") for frame in all_frames(release / split).values()]
    by_composition = {}
    for atoms, reference in frames:
        by_composition.setdefault(atoms.get_chemical_formula(), set()).add(reference)
    assert all(len(references) == 1 for references in by_composition.values())


def test_written_constraint_and_header_are_those_of_the_release(release):
    text = ase.io.formats.open_with_compression(release / "train" / "0.extxyz.xz", "r").read()
    assert re.search(r"Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=\S+ pbc=\"T T T\"", text)


def test_structures_are_a_function_of_the_seed_and_their_number(tmp_path):
    def first_file(name, **options):
        generate(tmp_path / name, max_steps=3, progress=False, **options)
        return (tmp_path / name / "train" / "0.extxyz.xz").read_bytes()

    one = first_file("one", systems=1, seed=7)
    assert one == first_file("again", systems=1, seed=7)
    assert one == first_file("more", systems=2, seed=7)
    assert one != first_file("other", systems=1, seed=8)


def test_unphysical_systems_are_redrawn(monkeypatch):
    tries = []
    relax = slabs._relax

    def fail_twice(system, *, max_steps):
        tries.append(system)
        return [system] if len(tries) <= 2 else relax(system, max_steps=max_steps)

    monkeypatch.setattr(slabs, "_relax", fail_twice)
    frames = slabs.draw_relaxation(np.random.default_rng(0), max_steps=2)
    assert len(tries) > 2
    assert all(slabs._is_physical(frame) for frame in frames)


def test_forces_beyond_the_limit_are_unphysical(release):
    atoms = next(iter(all_frames(release / "train").values()))[0]
    assert slabs._is_physical(atoms)
    atoms.calc.results["forces"][-1] = [26.0, 0.0, 0.0]
    assert not slabs._is_physical(atoms)


def test_refuses_a_folder_with_content_and_silly_numbers(release, tmp_path):
    with pytest.raises(ValueError, match="exists and is not empty"):
        generate(release, progress=False)
    with pytest.raises(ValueError, match="--systems must be a whole number of at least 1, got 0"):
        generate(tmp_path / "out", systems=0)


def test_an_impossible_out_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "draw_relaxation", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"a/out cannot be made because .*/file is not a folder: give another one"):
        generate(tmp_path / "file" / "a" / "out", progress=False)
    with pytest.raises(ValueError, match=r"/proc/foo cannot be made because .* the folder /(proc)? \(.*give a folder"):
        generate("/proc/foo", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_folders_above_out_are_made(tmp_path):
    generate(tmp_path / "a" / "b", systems=1, max_steps=2, progress=False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_command_line(tmp_path, release):
    parser = argparse.ArgumentParser()
    synthetic.add_arguments(parser)
    synthetic.run(parser.parse_args([str(tmp_path / "out"), "--systems", "1", "--max-steps", "2", "--quiet"]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val_id", "val_ood"]
