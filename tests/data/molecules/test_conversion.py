"""`dens data molecules`: units, splits, what is refused, and that what is written is what was read."""

from __future__ import annotations

import argparse
import json
import lzma
import re

import ase.db
import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms, units
from ase.build import bulk, graphene, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.datasets import LmdbDataset

from dens_plugin.data.molecules import command, conversion
from dens_plugin.data.molecules.conversion import Options, convert
from dens_plugin.data.molecules.manifest import origin_of
from dens_plugin.data.molecules.plausibility import energy_force_slope
from dens_plugin.data.molecules.split import Sizes
from dens_plugin.data.structures import Keys, from_atoms

KCAL = units.kcal / units.mol
NUMBERS = np.array([8, 1, 1])
REST = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])  # Å
PAIRS = ((0, 1), (0, 2), (1, 2))
STIFFNESS, TOTAL = 30.0, -2079.0  # eV/Å², eV
OPTIONS = Options(Sizes(40, 10))


def water(seed):
    """A frame of harmonic water in eV and Å, turned at random."""
    rng = np.random.default_rng(seed)
    positions = (REST + rng.normal(scale=0.03, size=(3, 3))) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    energy, forces = TOTAL, np.zeros((3, 3))
    for a, b in PAIRS:
        vector = positions[b] - positions[a]
        length, rest = np.linalg.norm(vector), np.linalg.norm(REST[b] - REST[a])
        energy += 0.5 * STIFFNESS * (length - rest) ** 2
        pull = STIFFNESS * (length - rest) * vector / length
        forces[a] += pull
        forces[b] -= pull
    return positions, energy, forces


@pytest.fixture(scope="module")
def frames():
    """Positions, energies and forces of 60 frames."""
    return tuple(map(np.array, zip(*map(water, range(60)), strict=True)))


def atoms_of(frames, **cell):
    for positions, energy, forces in zip(*frames, strict=True):
        atoms = Atoms(NUMBERS, positions=positions, **cell)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        yield atoms


def write_rmd17(path, frames):
    positions, energies, forces = frames
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, nuclear_charges=NUMBERS, coords=positions, energies=energies / KCAL, forces=forces / KCAL)
    return path


def write_sgdml(path, frames, scale=KCAL, **names):
    positions, energies, forces = frames
    np.savez(path, z=NUMBERS, R=positions, E=energies[:, None] / scale, F=forces / scale, **names)
    return path


def write_extxyz(path, frames):
    ase.io.write(path, list(atoms_of(frames)), format="extxyz")
    return path


def write_boxed(path, frames):
    ase.io.write(path, list(atoms_of(frames, cell=[20, 20, 20])), format="extxyz")
    return path


def read(folder):
    dataset = LmdbDataset({"src": str(folder)})
    return [dataset[index] for index in range(len(dataset))]


def read_all(out):
    return {
        graph.fid: graph for name in ("train", "val", "test") if (out / name).is_dir() for graph in read(out / name)
    }


def make(src, out, options=OPTIONS, **more):
    return convert(src, out, options, progress=False, **more)


WRITERS = {
    "rmd17": lambda folder, frames: write_rmd17(folder / "rmd17_water.npz", frames),
    "sgdml": lambda folder, frames: write_sgdml(folder / "water.npz", frames, e_unit="kcal/mol", r_unit="Ang"),
    "sgdml_bytes": lambda folder, frames: write_sgdml(folder / "water.npz", frames, e_unit=b"kcal/mol", r_unit=b"Ang"),
    "sgdml_ev": lambda folder, frames: write_sgdml(folder / "water.npz", frames, scale=1.0, e_unit="eV", r_unit="Ang"),
    "extxyz": lambda folder, frames: write_extxyz(folder / "water.extxyz", frames),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_what_was_read(kind, frames, tmp_path):
    result = make(WRITERS[kind](tmp_path, frames), tmp_path / "out")
    assert result.counts == {"train": 40, "val": 10, "test": 10}
    graphs = read_all(tmp_path / "out")
    assert sorted(graphs) == list(range(60))
    for index, graph in graphs.items():
        positions, energy, forces = (array[index] for array in frames)
        np.testing.assert_allclose(graph.energy + result.reference, energy, rtol=0, atol=1e-6)
        np.testing.assert_allclose(graph.forces, forces, rtol=0, atol=1e-5)
        np.testing.assert_allclose(graph.pos, positions, rtol=0, atol=1e-5)
        assert graph.atomic_numbers.tolist() == NUMBERS.tolist()
        assert (graph.natoms, graph.sid, graph.fid, graph.fixed.sum(), graph.pbc.any()) == (3, 0, index, 0, False)


def test_database_of_ase(frames, tmp_path):
    with ase.db.connect(tmp_path / "water.db") as database:
        for atoms in atoms_of(frames):
            database.write(atoms)
    make(tmp_path / "water.db", tmp_path / "out")
    np.testing.assert_allclose(read_all(tmp_path / "out")[7].forces, frames[2][7], atol=1e-5)


def test_energies_keep_their_digits_in_float32(frames, tmp_path):
    result = make(write_rmd17(tmp_path / "water.npz", frames), tmp_path / "out")
    train = read(tmp_path / "out" / "train")
    energies = torch.tensor([graph.energy for graph in train], dtype=torch.float32).double().numpy()
    true = frames[1][[graph.fid for graph in train]]
    np.testing.assert_allclose(energies + result.reference, true, rtol=0, atol=1e-7)
    assert abs(true.astype(np.float32) - true).max() > 1e-5  # what the reference is good for
    assert result.reference == pytest.approx(true.mean())
    assert result.normalizer.mean == pytest.approx(0, abs=1e-9)
    assert result.normalizer.stdev == pytest.approx(true.std(ddof=1))
    stored = np.load(tmp_path / "out" / "normalizer_forces.npz")
    assert (stored["mean"], stored["rmsd"]) == (0, np.float32(result.normalizer.stdev))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["reference_energy_ev"] == result.reference


@pytest.mark.parametrize(("reference", "subtracted"), [("none", 0.0), ("-2000", -2000.0)])
def test_reference_of_the_users_own(reference, subtracted, frames, tmp_path):
    source = write_rmd17(tmp_path / "water.npz", frames)
    result = make(source, tmp_path / "out", OPTIONS._replace(reference=reference))
    assert result.reference == subtracted
    assert read_all(tmp_path / "out")[0].energy == pytest.approx(frames[1][0] - subtracted)
    assert result.normalizer.mean == pytest.approx(TOTAL - subtracted, abs=1)


def test_split_is_of_the_seed_and_can_be_given_to_others(frames, tmp_path):
    source = write_rmd17(tmp_path / "water.npz", frames)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make(source, tmp_path / name, OPTIONS._replace(seed=seed))
    make(source, tmp_path / "d", OPTIONS._replace(seed=5), split_files=[tmp_path / "a" / "split.npz"])
    a, b, c, d = ([graph.fid for graph in read(tmp_path / name / "train")] for name in "abcd")
    assert a == b == d
    assert a != c


def test_published_splits(frames, tmp_path):
    source = write_rmd17(tmp_path / "water.npz", frames)
    order = np.random.default_rng(0).permutation(60)
    for name, indices in (("train", order[:50]), ("test", order[55:])):
        (tmp_path / f"{name}.csv").write_text("".join(f"{index}\n" for index in indices))
    (tmp_path / "s.json").write_text(json.dumps({"train_idx": [5, 1], "val_idx": [3], "test_idx": [2]}))
    make(source, tmp_path / "csv", split_files=[tmp_path / "train.csv", tmp_path / "test.csv"])
    make(source, tmp_path / "json", split_files=[tmp_path / "s.json"])
    split = np.load(tmp_path / "csv" / "split.npz")
    assert sorted([*split["train"], *split["val"]]) == sorted(order[:50])
    assert split["test"].tolist() == sorted(order[55:])
    assert [graph.fid for graph in read(tmp_path / "json" / "train")] == [1, 5]


def test_another_file_for_test(frames, tmp_path):
    source = write_rmd17(tmp_path / "a.npz", [array[:50] for array in frames])
    other = write_extxyz(tmp_path / "b.extxyz", [array[50:] for array in frames])
    result = make(source, tmp_path / "out", test=other)
    assert result.counts == {"train": 40, "val": 10, "test": 10}
    assert {graph.sid for graph in read(tmp_path / "out" / "test")} == {1}


def test_crystals_keep_cell_and_periodicity(tmp_path):
    frames = []
    for seed in range(8):
        atoms = bulk("Cu", cubic=True) if seed % 2 else bulk("NiO", "rocksalt", a=4.2)
        atoms.rattle(0.05, seed=seed)
        forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=float(seed), forces=forces - forces.mean(axis=0))
        frames.append(atoms)
    ase.io.write(tmp_path / "crystals.extxyz", frames)
    options = Options(Sizes(5, 2), mixed=True)
    assert make(tmp_path / "crystals.extxyz", tmp_path / "out", options).reference == 0
    for index, graph in read_all(tmp_path / "out").items():
        np.testing.assert_allclose(graph.cell[0], frames[index].cell.array, atol=1e-5)
        assert graph.pbc.all()


def test_sheets_and_molecules_may_share_a_data_set(tmp_path):
    """Cells without a vector across a sheet are completed; `--mixed` allows several periodicities."""
    frames = []
    for seed in range(8):
        atoms = graphene(size=(2, 2, 1)) if seed % 2 else molecule("C2H6")
        atoms.rattle(0.05, seed=seed)
        forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=float(seed), forces=forces - forces.mean(axis=0))
        frames.append(atoms)
    ase.io.write(tmp_path / "both.extxyz", frames)
    make(tmp_path / "both.extxyz", tmp_path / "out", Options(Sizes(5, 2), mixed=True))
    for index, graph in read_all(tmp_path / "out").items():
        assert graph.pbc.tolist() == frames[index].pbc.tolist()
        assert np.abs(np.linalg.det(graph.cell[0])) > 0


def test_download_of_pyg(frames, tmp_path):
    write_rmd17(tmp_path / "raw" / "rmd17" / "npz_data" / "rmd17_water.npz", frames)
    assert make(tmp_path, tmp_path / "out").counts["train"] == 40
    write_rmd17(tmp_path / "raw" / "other.npz", frames)
    with pytest.raises(ValueError, match=r"several molecules: give one of raw/other"):
        make(tmp_path, tmp_path / "out2")


class TestUnits:
    def test_unsaid_are_asked_for(self, frames, tmp_path):
        source = write_sgdml(tmp_path / "md17.npz", frames)
        with pytest.raises(ValueError, match=r"does not say in which units.*--units.*kcal/mol"):
            make(source, tmp_path / "out")
        result = make(source, tmp_path / "out", OPTIONS._replace(units="kcal/mol"))
        assert result.reference == pytest.approx(TOTAL, abs=1)

    def test_contradiction(self, frames, tmp_path):
        source = write_sgdml(tmp_path / "a.npz", frames, e_unit="kcal/mol")
        with pytest.raises(ValueError, match=r"says that it is in kcal/mol and Ang, --units says eV.*the e_unit"):
            make(source, tmp_path / "out", OPTIONS._replace(units="eV"))
        positions, energies, forces = frames
        wrong = write_sgdml(tmp_path / "b.npz", (positions, energies / KCAL, forces / KCAL), scale=1, e_unit="eV")
        with pytest.raises(ValueError, match=r"too large for these units.*correct the e_unit"):
            make(wrong, tmp_path / "out")

    def test_documentation_gives_way_to_the_user(self, frames, tmp_path):
        """An rMD17-like file in eV: its forces look like those of relaxed structures, which is said, not refused."""
        positions, energies, forces = frames
        source = write_rmd17(tmp_path / "a.npz", (positions, KCAL * energies, KCAL * forces))
        text = str(make(source, tmp_path / "wrong"))
        assert "warning: " in text
        assert "nearly relaxed, give --units" in text
        result = make(source, tmp_path / "out", OPTIONS._replace(units="eV"))
        assert result.reference == pytest.approx(TOTAL, abs=1)
        assert "warning" not in str(result)

    def test_named_units_are_doubted_too(self, frames, tmp_path):
        source = write_extxyz(tmp_path / "a.extxyz", frames)
        assert "warning: " in str(make(source, tmp_path / "out", OPTIONS._replace(units="kcal/mol")))
        with pytest.raises(ValueError, match=r"too large for these units.*give --units"):
            make(write_rmd17(tmp_path / "b.npz", frames), tmp_path / "out2", OPTIONS._replace(units="eV"))

    @pytest.mark.parametrize("total", [TOTAL, 0.0])
    def test_test_file_in_other_units(self, total, frames, tmp_path):
        """--units is for both files; total energies, or else the forces, tell that one of them is in others."""
        positions, energies, forces = frames[0], frames[1] - TOTAL + total, frames[2]
        source = write_sgdml(tmp_path / "a.npz", [array[:50] for array in (positions, energies, forces)])
        other = write_extxyz(tmp_path / "b.extxyz", [array[50:] for array in (positions, energies, forces)])
        options = OPTIONS._replace(units="kcal/mol")
        with pytest.raises(ValueError, match=r"b.extxyz .*(for the same molecule|in eV).*--test-units"):
            make(source, tmp_path / "out", options, test=other)
        made = make(source, tmp_path / "out", options._replace(test_units="eV"), test=other)
        assert made.counts["test"] == 10

    def test_unknown_names(self, frames, tmp_path):
        with pytest.raises(ValueError, match=r"names the unit of energy 'kcals/mol'; did you mean 'kcal/mol'"):
            make(write_sgdml(tmp_path / "a.npz", frames, e_unit="kcals/mol"), tmp_path / "out")

    @pytest.mark.parametrize("factor", [1 / KCAL, KCAL / 4])
    def test_impossible_size_of_forces(self, factor, frames, tmp_path):
        positions, energies, forces = frames
        source = write_extxyz(tmp_path / "a.extxyz", (positions, factor * energies, factor * forces))
        with pytest.raises(ValueError, match=r"forces have an rms of .* give --units"):
            make(source, tmp_path / "out")

    @pytest.mark.parametrize(
        ("energy", "force", "match"),
        [(1 / KCAL, 1, "one of them is in kcal/mol"), (1, -1, "other sign"), (1, units.Bohr, "not in the same units")],
    )
    def test_energies_and_forces_that_contradict(self, energy, force, match, frames, tmp_path):
        positions, energies, forces = frames
        source = write_extxyz(tmp_path / "a.extxyz", (positions, energy * energies, force * forces))
        with pytest.raises(ValueError, match=match):
            make(source, tmp_path / "out")

    def test_energies_of_other_frames(self, frames, tmp_path):
        positions, energies, forces = frames
        source = write_rmd17(tmp_path / "a.npz", (positions, energies[::-1], forces))
        with pytest.raises(ValueError, match=r"energies do not follow the forces at all"):
            make(source, tmp_path / "out")

    @pytest.mark.parametrize(
        ("unit", "match"),
        [(["kcal/mol", "eV"], "e_unit must be the name of one unit, got 2"), (b"\xff", "a.npz names the unit")],
    )
    def test_names_that_are_none(self, unit, match, frames, tmp_path):
        with pytest.raises(ValueError, match=match):
            make(write_sgdml(tmp_path / "a.npz", frames, e_unit=unit), tmp_path / "out")

    def test_hartree_with_bohr(self, frames, tmp_path):
        positions, energies, forces = frames
        scaled = (positions, energies / units.Hartree, forces / (units.Hartree / units.Bohr))
        source = write_extxyz(tmp_path / "a.extxyz", scaled)
        make(source, tmp_path / "out", OPTIONS._replace(units="hartree-bohr"))
        np.testing.assert_allclose(read_all(tmp_path / "out")[3].forces, forces[3], atol=1e-5)
        with pytest.raises(ValueError, match=r"not in the same units"):
            make(source, tmp_path / "other", OPTIONS._replace(units="hartree"))

    def test_lengths_in_bohr(self, frames, tmp_path):
        positions, energies, forces = frames
        scaled = (positions / units.Bohr, energies / units.Hartree, forces / (units.Hartree / units.Bohr))
        make(write_sgdml(tmp_path / "a.npz", scaled, 1.0, e_unit="hartree", r_unit="bohr"), tmp_path / "out")
        graph = read_all(tmp_path / "out")[3]
        np.testing.assert_allclose(graph.pos, positions[3], atol=1e-5)
        np.testing.assert_allclose(graph.forces, forces[3], atol=1e-5)


def test_slope_does_not_depend_on_how_frames_lie(frames):
    """Frames are turned at random; without turning them onto each other nothing would be close."""
    structures = [from_atoms(atoms) for atoms in atoms_of(frames)]
    assert energy_force_slope(structures) == pytest.approx(1, abs=0.1)
    assert energy_force_slope(structures[:5]) is None


def spoilt(frames, which, index, value):
    copies = [array.copy() for array in frames]
    copies[which][index] = value
    return copies


class TestRefusals:
    @pytest.mark.parametrize(("which", "name"), [(0, "positions"), (1, "energy"), (2, "forces")])
    def test_nan(self, which, name, frames, tmp_path):
        source = write_rmd17(tmp_path / "a.npz", spoilt(frames, which, 17, np.nan))
        with pytest.raises(ValueError, match=rf"a.npz, frame 17 has NaN or infinite {name}"):
            make(source, tmp_path / "out")

    def test_isolated_atom(self, frames, tmp_path):
        source = write_rmd17(tmp_path / "a.npz", spoilt(frames, 0, (9, 2), 20.0))
        with pytest.raises(ValueError, match=r"frame 9: atom 2 has no neighbour within 5 Å"):
            make(source, tmp_path / "out")

    def test_atoms_on_each_other(self, frames, tmp_path):
        source = write_rmd17(tmp_path / "a.npz", spoilt(frames, 0, (9, 2), frames[0][9, 1] + 0.1))
        with pytest.raises(ValueError, match=r"frame 9: atom . is 0.173 Å from another"):
            make(source, tmp_path / "out")

    def test_repeated_frames(self, frames, tmp_path):
        source = write_rmd17(tmp_path / "a.npz", spoilt(frames, 0, 30, frames[0][4]))
        with pytest.raises(ValueError, match=r"1 frame came before: .*frame 30 is .*frame 4.*--drop-duplicates"):
            make(source, tmp_path / "out")
        result = make(source, tmp_path / "out", OPTIONS._replace(drop_duplicates=True))
        assert sum(result.counts.values()) == 59
        assert 30 not in read_all(tmp_path / "out")

    @pytest.mark.parametrize("write", [write_rmd17, write_extxyz, write_boxed], ids=["same", "text", "text with a box"])
    def test_test_frames_that_were_trained_on(self, write, frames, tmp_path):
        """Whatever the file rounds, and whether it draws a box around molecules that no periodicity repeats."""
        source, other = write_rmd17(tmp_path / "a.npz", frames), write(tmp_path / "b.npz", frames)
        other = other.rename(other.with_suffix(".npz" if write is write_rmd17 else ".extxyz"))
        with pytest.raises(ValueError, match=r"60 frames came before: .*b\.\w+, frame 0 is .*a.npz, frame 0"):
            make(source, tmp_path / "out", test=other)
        with pytest.raises(ValueError, match=r"has no frame that did not come before"):
            make(source, tmp_path / "out", OPTIONS._replace(drop_duplicates=True), test=other)

    def test_the_file_itself_for_test(self, frames, tmp_path):
        source = write_rmd17(tmp_path / "a.npz", frames)
        for name in (source, tmp_path / "." / "a.npz"):
            with pytest.raises(ValueError, match=r"--test .*a.npz is SRC itself"):
                make(source, tmp_path / "out", test=name)

    @pytest.mark.parametrize(
        ("numbers", "match"),
        [
            (-NUMBERS, "frame 0 has atomic numbers of no element: -8, -1"),
            (0 * NUMBERS, "atomic numbers of no element: 0"),
            (NUMBERS + 200, "atomic numbers of no element: 201, 208"),
            (NUMBERS + 0.5, "z must be atomic numbers, got 8.5"),
            (NUMBERS * np.nan, "z must be atomic numbers, got nan"),
            (NUMBERS.astype(complex), "z must hold real numbers, got complex"),
            (["O", "H", "H"], "z must hold real numbers, got <U1"),
            (np.array([8, 1, None]), "z cannot be read, as it is an array of Python objects.* save it anew"),
        ],
    )
    def test_numbers_of_no_element(self, numbers, match, frames, tmp_path):
        positions, energies, forces = frames
        np.savez(tmp_path / "a.npz", z=numbers, R=positions, E=energies, F=forces, e_unit="eV")
        with pytest.raises(ValueError, match=rf"a.npz.*{match}"):
            make(tmp_path / "a.npz", tmp_path / "out")

    def test_dummy_atoms(self, frames, tmp_path):
        atoms = list(atoms_of(frames))
        atoms[3].numbers[2] = 0
        ase.io.write(tmp_path / "a.extxyz", atoms)
        with pytest.raises(ValueError, match=r"frame 3 has atomic numbers of no element: 0"):
            make(tmp_path / "a.extxyz", tmp_path / "out")

    @pytest.mark.parametrize(
        ("box", "match"),
        [
            ({"cell": [20, 20, 20], "pbc": True}, r"frame 1 has pbc \[True, True, True\], .*frame 0 \[False"),
            ({"pbc": True}, r"frame 1 is periodic and its cell has no volume"),
        ],
    )
    def test_periodicity_that_cannot_be(self, box, match, frames, tmp_path):
        crystals = list(atoms_of(frames, **box))
        ase.io.write(tmp_path / "a.traj", [next(atoms_of(frames)), *crystals[1:]])
        with pytest.raises(ValueError, match=match):
            make(tmp_path / "a.traj", tmp_path / "out")

    def test_a_single_array(self, frames, tmp_path):
        np.save(tmp_path / "a.npy", frames[0])
        source = (tmp_path / "a.npy").rename(tmp_path / "a.npz")
        with pytest.raises(ValueError, match=r"a.npz is an npy file of a single array"):
            make(source, tmp_path / "out")
        with pytest.raises(ValueError, match=r"a.npz is an npy file of a single array"):
            make(write_rmd17(tmp_path / "b.npz", frames), tmp_path / "out", split_files=[source])

    def test_too_few_frames(self, frames, tmp_path):
        with pytest.raises(ValueError, match=r"--split 950,50 asks for 1,000 frames, there are 60"):
            make(write_rmd17(tmp_path / "a.npz", frames), tmp_path / "out", Options(Sizes(950, 50)))

    def test_two_molecules(self, frames, tmp_path):
        other = Atoms("CO", positions=[[0, 0, 0], [1.1, 0, 0]])
        other.calc = SinglePointCalculator(other, energy=1.0, forces=np.zeros((2, 3)))
        ase.io.write(tmp_path / "a.extxyz", [*atoms_of(frames), other])
        with pytest.raises(ValueError, match=r"frame 60 is CO, .*frame 0 is H2O.*--mixed"):
            make(tmp_path / "a.extxyz", tmp_path / "out")

    def test_another_molecule_for_test(self, frames, tmp_path):
        positions, energies, forces = frames
        heavy = tmp_path / "b.npz"
        np.savez(heavy, nuclear_charges=[16, 1, 1], coords=positions, energies=energies, forces=forces)
        with pytest.raises(ValueError, match=r"b.npz, frame 0 is H2S, .*a.npz, frame 0 is H2O"):
            make(write_rmd17(tmp_path / "a.npz", frames), tmp_path / "out", test=heavy)

    def test_no_forces(self, frames, tmp_path):
        np.savez(tmp_path / "a.npz", z=NUMBERS, R=frames[0], E=frames[1])
        with pytest.raises(ValueError, match=r"a.npz has no F: training needs energies and forces.*--energies-only"):
            make(tmp_path / "a.npz", tmp_path / "out")
        alone = OPTIONS._replace(units="eV", energies_only=True)
        assert "forces" not in read(make(tmp_path / "a.npz", tmp_path / "alone", alone).out / "train")[0]
        ase.io.write(tmp_path / "b.extxyz", [Atoms(NUMBERS, positions=positions) for positions in frames[0]])
        with pytest.raises(ValueError, match=r"frame 0 has no energy and no forces"):
            make(tmp_path / "b.extxyz", tmp_path / "out")

    def test_labels_in_some_frames_alone(self, frames, tmp_path):
        atoms = list(atoms_of(frames))
        del atoms[30].calc.results["forces"]
        ase.io.write(tmp_path / "a.extxyz", atoms)
        with pytest.raises(ValueError, match=r"frame 30 has no forces, which the first frame has: .*--energies-only"):
            make(tmp_path / "a.extxyz", tmp_path / "out")

    def test_targets_that_are_not_there(self, frames, tmp_path):
        atoms = list(atoms_of(frames))
        for each in atoms:
            each.info["gap"] = 0.5
        ase.io.write(tmp_path / "a.extxyz", atoms)
        named = OPTIONS._replace(keys=Keys(targets=("foo",)))
        with pytest.raises(ValueError, match=r"frame 0 has no number foo, which --targets is to keep.* It has .*gap"):
            make(tmp_path / "a.extxyz", tmp_path / "out", named)
        with pytest.raises(ValueError, match=r"--targets: .*b.npz has no 'foo'; files of its kind have none"):
            make(write_rmd17(tmp_path / "b.npz", frames), tmp_path / "out", named)

    def test_unknown_elements_of_text(self, frames, tmp_path):
        source = write_extxyz(tmp_path / "a.extxyz", frames)
        lines = source.read_text().splitlines()
        lines[5 * 7 + 2] = lines[5 * 7 + 2].replace("O ", "Qq", 1)
        source.write_text("\n".join(lines))
        with pytest.raises(ValueError, match=r"a.extxyz, frame 7 has an unknown element 'Qq': correct the file"):
            make(source, tmp_path / "out")
        (tmp_path / "b.xyz").write_text("1\n-1.0\nO 0 0 0 0 0 0\n1\n-1.0\nQq 0 0 0 0 0 0\n")
        with pytest.raises(ValueError, match=r"b.xyz, frame 1 has an unknown element 'Qq'"):
            make(tmp_path / "b.xyz", tmp_path / "out", OPTIONS._replace(units="eV"))

    def test_one_molecule_cannot_be_divided(self, frames, tmp_path):
        source = write_rmd17(tmp_path / "a.npz", frames)
        with pytest.raises(ValueError, match=r"of 1 molecules makes 1 for training and 0 .*leave out --split-by"):
            make(source, tmp_path / "out", Options(Sizes(0.8, 0.1), split_by="molecules"))
        with pytest.raises(ValueError, match=r"of 60 frames makes 48 for training and 0 .*: give larger shares"):
            make(source, tmp_path / "out", Options(Sizes(0.8, 0.001)))

    def test_arrays_of_other_sizes(self, frames, tmp_path):
        np.savez(tmp_path / "a.npz", z=[8, 1], R=frames[0], E=frames[1], F=frames[2], e_unit="eV")
        with pytest.raises(ValueError, match=r"do not belong together"):
            make(tmp_path / "a.npz", tmp_path / "out")

    @pytest.mark.parametrize("share", [0.3, 0.95])
    def test_truncated_npz(self, share, frames, tmp_path):
        path = write_rmd17(tmp_path / "a.npz", frames)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ValueError, match=r"a.npz is truncated or no npz file"):
            make(path, tmp_path / "out")

    def test_truncated_xz(self, frames, tmp_path):
        text = write_extxyz(tmp_path / "a.extxyz", frames).read_bytes()
        packed = tmp_path / "b.extxyz.xz"
        packed.write_bytes(lzma.compress(text))
        assert make(packed, tmp_path / "whole").counts["train"] == 40
        packed.write_bytes(lzma.compress(text)[:-200])
        with pytest.raises(ValueError, match=r"b.extxyz.xz"):
            make(packed, tmp_path / "out")

    def test_truncated_text(self, frames, tmp_path):
        source = write_extxyz(tmp_path / "a.extxyz", frames)
        lines = source.read_text().splitlines()
        source.write_text("\n".join([*lines[: 5 * 7 + 3], lines[5 * 7 + 3][:20]]))
        with pytest.raises(ValueError, match=r"^\S+a.extxyz is not a whole extended XYZ file \(after 7 frames: "):
            make(source, tmp_path / "out")

    def test_no_molecules(self, tmp_path):
        np.savez(tmp_path / "a.npz", train=[1])
        with pytest.raises(ValueError, match=r"has the arrays train, not"):
            make(tmp_path / "a.npz", tmp_path / "out")
        with pytest.raises(FileNotFoundError, match=r"does not exist"):
            make(tmp_path / "missing.npz", tmp_path / "out")

    def test_out_that_is_there(self, frames, tmp_path):
        source = write_rmd17(tmp_path / "a.npz", frames)
        make(source, tmp_path / "out")
        with pytest.raises(ValueError, match=r"out exists: give another OUT"):
            make(source, tmp_path / "out")

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ({"train": [0, 1], "val": [1]}, "has a frame twice"),
            ({"train": [0, 60], "val": [1]}, "indices from 0 to 60, the data have 60 frames"),
            ({"train": [0.5], "val": [1]}, "train must be indices"),
            ({"train": [], "val": [1]}, "must each have a frame"),
            ({"training": [0]}, "needs train and val"),
            ({"train": None, "val": [1]}, "train must be indices of frames, got object"),
            ({"train": [0, [1, 2]], "val": [1]}, "s.json: train must be a list of indices"),
            ({"train": [0], "val": [1], "frames": "x"}, "splits x frames"),
            ([1, 2], "must hold lists of indices"),
        ],
    )
    def test_bad_split_files(self, content, match, frames, tmp_path):
        (tmp_path / "s.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=match):
            make(write_rmd17(tmp_path / "a.npz", frames), tmp_path / "out", split_files=[tmp_path / "s.json"])

    def test_split_of_other_data(self, frames, tmp_path):
        make(write_rmd17(tmp_path / "a.npz", frames), tmp_path / "a")
        fewer = write_rmd17(tmp_path / "b.npz", [array[:55] for array in frames])
        with pytest.raises(ValueError, match=r"splits 60 frames, the data have 55"):
            make(fewer, tmp_path / "b", split_files=[tmp_path / "a" / "split.npz"])

    def test_nothing_is_left_behind(self, frames, tmp_path):
        with pytest.raises(ValueError, match=r"NaN"):
            make(write_rmd17(tmp_path / "a.npz", spoilt(frames, 1, 59, np.nan)), tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz"]

    def test_an_interruption_leaves_nothing(self, frames, tmp_path, monkeypatch):
        source = write_rmd17(tmp_path / "a.npz", frames)
        monkeypatch.setattr(conversion, "write_normalizers", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(source, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz"]

    def test_what_is_the_users_stays(self, frames, tmp_path, monkeypatch):
        source = write_rmd17(tmp_path / "a.npz", frames)
        (tmp_path / "out.part").mkdir()
        (tmp_path / "out.part" / "precious").touch()
        with pytest.raises(ValueError, match=r"out.part exists, perhaps of a conversion that was killed"):
            make(source, tmp_path / "out")
        assert (tmp_path / "out.part" / "precious").exists()
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(ValueError, match=r"OUT is the folder you are in"):
            make(source, ".")

    @pytest.mark.parametrize(
        ("option", "match"),
        [
            ({"reference": "nan"}, "--reference .* must be finite, got nan"),
            ({"reference": "inf"}, "--reference .* must be finite"),
            ({"seed": -1}, "--seed must be 0 or more, got -1"),
        ],
    )
    def test_impossible_options(self, option, match, tmp_path):
        with pytest.raises(ValueError, match=match):
            make(tmp_path / "a.npz", tmp_path / "out", OPTIONS._replace(**option))


def raise_interrupt(*arguments, **options):
    raise KeyboardInterrupt


def test_doubtful_normalisers_are_named(frames, tmp_path):
    source = write_rmd17(tmp_path / "a.npz", frames)
    assert "no standard deviation, as there is one frame" in str(make(source, tmp_path / "one", Options(Sizes(1, 1))))
    carbon = [Atoms("CO", positions=[[0, 0, 0], [1.1 + 0.01 * index, 0, 0]]) for index in range(60)]
    for atoms in carbon:
        atoms.calc = SinglePointCalculator(atoms, energy=-3000.0, forces=[[0.5, 0, 0], [-0.5, 0, 0]])
    ase.io.write(tmp_path / "mixed.extxyz", [*atoms_of(frames), *carbon])
    mixed = make(tmp_path / "mixed.extxyz", tmp_path / "mixed", OPTIONS._replace(mixed=True, reference="none"))
    assert "is that between compositions and of no use" in str(mixed)
    assert "warning" not in str(make(source, tmp_path / "usual"))


def test_energies_that_compositions_explain_have_no_deviation(frames, tmp_path):
    """A fit to two compositions of one energy each leaves its own rounding."""
    positions, _, forces = frames
    hydroxyl = [atoms[:2] for atoms in atoms_of(frames)]
    for atoms, force in zip(hydroxyl, forces, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=-2050.1, forces=force[:2] - force[:2].mean(axis=0))
    water = list(atoms_of((positions, np.full(60, -2079.3), forces)))
    ase.io.write(tmp_path / "mixed.extxyz", [*water, *hydroxyl])
    result = make(tmp_path / "mixed.extxyz", tmp_path / "out", OPTIONS._replace(mixed=True))
    assert result.normalizer.stdev == 1.0
    assert "no standard deviation, as what is subtracted explains all of them" in str(result)


def test_small_deviations_keep_their_digits(frames, tmp_path):
    positions, energies, forces = frames
    source = write_sgdml(tmp_path / "a.npz", (positions, 1e-6 * energies, 1e-6 * forces), e_unit="eV", r_unit="Ang")
    with pytest.raises(ValueError, match="forces have an rms of"):
        make(source, tmp_path / "out")
    result = make(source, tmp_path / "out", OPTIONS._replace(energies_only=True))
    assert result.normalizer.stdev < 2e-6
    printed = yaml.safe_load(str(result).split("transforms:")[1].replace("  normalizer:", "normalizer:"))
    assert printed["normalizer"]["energy"]["stdev"] == pytest.approx(result.normalizer.stdev, rel=1e-5)


def test_positions_in_bohr_are_doubted(frames, tmp_path):
    """Energies and forces agree with them, whichever unit of length one takes; bonds do not."""
    positions, energies, forces = frames
    scaled = (positions / units.Bohr, energies, forces * units.Bohr)
    result = make(write_rmd17(tmp_path / "a.npz", scaled), tmp_path / "out")
    (told,) = [finding for finding in result.findings if "are positions in bohr?" in finding]
    assert re.match(r"warning: .*a.npz: the nearest atoms are 1\.\d+ times as far apart as bonds", told)
    named = write_sgdml(tmp_path / "b.npz", scaled, scale=1.0, e_unit="eV", r_unit="bohr")
    assert "warning" not in str(make(named, tmp_path / "named"))


def test_the_manifest_names_all_files_and_the_formula(frames, tmp_path):
    parts = [write_extxyz(folder(tmp_path / name) / "f.extxyz", [a[rows] for a in frames]) for name, rows in HALVES]
    make(parts[0], tmp_path / "out", Options(Sizes(40, 5)), test=parts[1])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["files"]) == [str(path) for path in parts]
    assert origin_of(tmp_path / "out" / "train")[:3] == ("H2O", ["H", "O"], manifest["reference_energy_ev"])


HALVES = (("a", slice(0, 50)), ("b", slice(50, 60)))


def folder(path):
    path.mkdir()
    return path


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([*map(str, arguments), "--quiet"]))


def test_command(frames, tmp_path, capsys):
    run(write_rmd17(tmp_path / "a.npz", frames), tmp_path / "out", "--split", "40,10,5")
    out = capsys.readouterr().out
    assert "(kcal/mol and Å)" in out
    assert "train 40, val 10, test 5" in out
    assert "    forces: {mean: 0.0, stdev: " in out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("950", "two or three numbers"),
        ("a,b", "two or three numbers"),
        ("1,2,3,4", "two or three numbers"),
        ("40,0", "each must be above 0"),
        ("40,nan", "each must be above 0"),
        ("0.9,0.2", "the shares make 1.1, more than all"),
        ("0.8,50", "cannot be mixed"),
        ("40,2.5", "are whole"),
        ("40,inf", "are whole"),
    ],
)
def test_bad_sizes(text, reason, tmp_path):
    with pytest.raises(ValueError, match=rf"--split must be TRAIN,VAL.*, got '{text}': .*{reason}"):
        run(tmp_path / "a.npz", tmp_path / "out", "--split", text)


def test_real_ethanol(shared_data, tmp_path):
    folder = shared_data / "molecules"
    result = make(
        folder / "rmd17_ethanol_train.extxyz.xz",
        tmp_path / "out",
        Options(Sizes(950, 50)),
        test=folder / "rmd17_ethanol_test.extxyz.xz",
    )
    assert result.counts == {"train": 950, "val": 50, "test": 500}
    assert result.normalizer.stdev == pytest.approx(0.187269, abs=1e-6)  # configs/data/rmd17_ethanol.yml
    assert result.reference == pytest.approx(-4209.617913, abs=1e-6)
    assert "1.05 times their work" in result.findings[0]


def test_other_real_molecules_are_told_apart(shared_data, tmp_path):
    folder = shared_data / "molecules"
    with pytest.raises(ValueError, match=r"is C12H12N2O, .*is C5H8O2"):
        make(
            folder / "acac_train_300K.extxyz.xz",
            tmp_path / "out",
            Options(Sizes(450, 50)),
            test=folder / "3bpa_train_300K.extxyz.xz",
        )
