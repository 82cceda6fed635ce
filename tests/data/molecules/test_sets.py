"""Sets of many molecules: ISO17, MD22's text files, what is shipped, names of labels, splits, references."""

from __future__ import annotations

import json

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.datasets import LmdbDataset

from dens_plugin.data.molecules.conversion import Options, convert
from dens_plugin.data.molecules.files import open_frames
from dens_plugin.data.molecules.manifest import origin_of
from dens_plugin.data.molecules.shipped import shipped_molecule, shipped_names
from dens_plugin.data.molecules.split import Sizes
from dens_plugin.data.structures import Keys

ATOMS = {"H": -13.6, "C": -1030.0, "O": -2042.0, "N": -1486.0}  # eV
NAMES = ("H2O", "CH4", "NH3", "CO2", "CH3OH", "C2H6")
STIFFNESS = 20.0  # eV/Å²


def frame(name, seed):
    """A molecule of ASE's, moved, with springs to its first shape; energies of atoms and 1 eV a molecule."""
    atoms = molecule(name)
    moves = np.random.default_rng(seed).normal(scale=0.03, size=(len(atoms), 3))
    moves -= moves.mean(axis=0)
    atoms.positions += moves
    energy = sum(ATOMS[symbol] for symbol in atoms.symbols) + 0.5 * STIFFNESS * (moves**2).sum()
    return atoms, energy, -STIFFNESS * moves


def frames_of(names=NAMES, each=8, **info):
    for number, name in enumerate(names):
        for seed in range(each):
            atoms, energy, forces = frame(name, 100 * number + seed)
            atoms.info["smiles"] = name
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            yield atoms


@pytest.fixture
def several(tmp_path):
    ase.io.write(tmp_path / "several.extxyz", list(frames_of()))
    return tmp_path / "several.extxyz"


def make(src, out, options, **more):
    return convert(src, out, options, progress=False, **more)


def read(folder):
    dataset = LmdbDataset({"src": str(folder)})
    return [dataset[index] for index in range(len(dataset))]


MIXED = Options(Sizes(0.7, 0.1), mixed=True)


class TestReferences:
    def test_fit_gives_the_energies_of_atoms(self, several, tmp_path):
        result = make(several, tmp_path / "out", MIXED)
        fitted = result.references.elements["energy"]
        assert fitted == pytest.approx(ATOMS, abs=0.1)
        assert abs(result.normalizer.stdev) < 0.2
        assert not result.references.undetermined
        graph = read(tmp_path / "out" / "train")[0]
        origin = origin_of(tmp_path / "out" / "train")
        whole = graph.energy + origin.reference_of(graph.atomic_numbers.int().tolist())
        assert whole == pytest.approx(open_frames(several).read(graph.fid).energy, abs=1e-6)

    def test_file(self, several, tmp_path):
        (tmp_path / "atoms.json").write_text(json.dumps(ATOMS))
        result = make(several, tmp_path / "out", MIXED._replace(reference=str(tmp_path / "atoms.json")))
        assert result.references.elements["energy"] == ATOMS
        assert result.normalizer.mean > 0

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ('{"H": -13.6, "C": -1030}', r"reference energies \(energy\) have no N, O"),
            ('{"Hh": 1}', "names an element 'Hh'"),
            ('{"H": "x"}', "must be a number"),
            ("[1]", "must hold eV per element"),
            ("{", "no json file"),
            ('{"U0": {"H": 1}}', "has values for U0; the data have energy"),
        ],
    )
    def test_files_that_do_not_fit(self, content, match, several, tmp_path):
        (tmp_path / "atoms.json").write_text(content)
        with pytest.raises(ValueError, match=match):
            make(several, tmp_path / "out", MIXED._replace(reference=str(tmp_path / "atoms.json")))
        assert not (tmp_path / "out").exists()

    def test_undetermined_directions_are_said(self, tmp_path):
        ase.io.write(tmp_path / "a.extxyz", list(frames_of(("C2H4", "C3H6_D3h"), each=10)))
        result = make(tmp_path / "a.extxyz", tmp_path / "out", MIXED)
        assert "do not tell the energies of C, H apart" in str(result)
        origin = origin_of(tmp_path / "out" / "train")
        assert origin.reference_of([6] * 4 + [1] * 8) == pytest.approx(4 * ATOMS["C"] + 8 * ATOMS["H"], abs=0.5)
        assert origin.reference_of([6] + [1] * 4) is None

    def test_one_composition_keeps_its_mean(self, tmp_path):
        ase.io.write(tmp_path / "a.extxyz", list(frames_of(("H2O",), each=20)))
        result = make(tmp_path / "a.extxyz", tmp_path / "out", MIXED)
        assert result.references.elements == {}
        assert result.reference == pytest.approx(ATOMS["O"] + 2 * ATOMS["H"], abs=0.5)


class TestSplitsOfMolecules:
    def test_no_molecule_is_in_two_parts(self, several, tmp_path):
        make(several, tmp_path / "out", MIXED._replace(sizes=Sizes(4, 1), split_by="molecules", reference="none"))
        parts = [
            {tuple(g.atomic_numbers.tolist()) for g in read(tmp_path / "out" / n)} for n in ("train", "val", "test")
        ]
        assert list(map(len, parts)) == [4, 1, 1]
        assert len(set.union(*parts)) == 6

    def test_every_molecule_is_in_all_parts(self, several, tmp_path):
        options = MIXED._replace(sizes=Sizes(0.5, 0.25, 0.25), split_by="conformations")
        assert make(several, tmp_path / "out", options).counts == {"train": 24, "val": 12, "test": 12}
        for name, each in (("train", 4), ("val", 2), ("test", 2)):
            counts = [tuple(g.atomic_numbers.tolist()) for g in read(tmp_path / "out" / name)]
            assert {counts.count(one) for one in counts} == {each}
        with pytest.raises(ValueError, match=r"conformations needs shares"):
            make(several, tmp_path / "b", options._replace(sizes=Sizes(20, 5)))

    def test_split_file_that_leaks(self, several, tmp_path):
        order = list(range(48))
        (tmp_path / "s.json").write_text(json.dumps({"train": order[:30], "val": order[30:40], "test": order[40:]}))
        options = MIXED._replace(split_by="molecules", reference="none")
        with pytest.raises(ValueError, match=r"molecules of validation are in training too, the first is CO2"):
            make(several, tmp_path / "out", options, split_files=[tmp_path / "s.json"])
        assert not (tmp_path / "out").exists()

    def test_file_for_test_that_leaks(self, several, tmp_path):
        ase.io.write(tmp_path / "t.extxyz", [frame_with("CH4", seed) for seed in range(900, 910)])
        options = MIXED._replace(sizes=Sizes(5, 1), seed=1, split_by="molecules", reference="none")
        with pytest.raises(ValueError, match=r"molecules of (test|validation) are in training too, the first is CH4"):
            make(several, tmp_path / "leak", options, test=tmp_path / "t.extxyz")
        by_frames = make(several, tmp_path / "out", MIXED, test=tmp_path / "t.extxyz")
        assert "1 of the 1 molecules of test are in training too" in str(by_frames)

    def test_molecules_by_a_name_of_ones_own(self, tmp_path):
        frames = [frame_with("CH4", seed) for seed in range(40)]
        for number, atoms in enumerate(frames):
            atoms.info["batch"] = f"b{number // 10}"
        ase.io.write(tmp_path / "a.extxyz", frames)
        options = Options(Sizes(2, 1), split_by="molecules", keys=Keys(molecule="batch"))
        make(tmp_path / "a.extxyz", tmp_path / "out", options)
        train = {graph.fid // 10 for graph in read(tmp_path / "out" / "train")}
        assert len(train) == 2

    def test_shares(self, several, tmp_path):
        assert make(several, tmp_path / "out", MIXED._replace(sizes=Sizes(0.5, 0.25, 0.25))).counts["train"] == 24


def frame_with(name, seed):
    atoms, energy, forces = frame(name, seed)
    atoms.info["smiles"] = name
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


class TestNamesOfLabels:
    @pytest.mark.parametrize("names", [("REF_energy", "REF_forces"), ("dft_energy", "dft_forces"), ("E", "force")])
    def test_columns_of_others(self, names, tmp_path):
        frames = []
        for seed in range(20):
            atoms, energy, forces = frame("CH4", seed)
            atoms.info[names[0]] = energy
            atoms.set_array(names[1], forces)
            frames.append(atoms)
        ase.io.write(tmp_path / "a.extxyz", frames, format="extxyz")
        with pytest.raises(ValueError, match=rf"no energy and no forces.*--forces-key give other names.*{names[1]}"):
            make(tmp_path / "a.extxyz", tmp_path / "out", Options(Sizes(10, 5)))
        make(tmp_path / "a.extxyz", tmp_path / "out", Options(Sizes(10, 5), keys=Keys(*names)))
        graph = read(tmp_path / "out" / "train")[0]
        np.testing.assert_allclose(graph.forces, frame("CH4", graph.fid)[2], atol=1e-5)

    def test_further_targets(self, tmp_path):
        frames = [frame_with("CH4", seed) for seed in range(20)]
        for seed, atoms in enumerate(frames):
            atoms.info["dipole_norm"] = 0.1 * seed
        ase.io.write(tmp_path / "a.extxyz", frames, format="extxyz")
        options = Options(Sizes(10, 5), keys=Keys(targets=("dipole_norm",)))
        result = make(tmp_path / "a.extxyz", tmp_path / "out", options)
        graph = read(tmp_path / "out" / "train")[0]
        assert graph.dipole_norm == pytest.approx(0.1 * graph.fid)
        assert "dipole_norm: {mean" in str(result)
        with pytest.raises(ValueError, match=r"frame 0 has no number other"):
            make(tmp_path / "a.extxyz", tmp_path / "b", Options(Sizes(10, 5), keys=Keys(targets=("other",))))
        with pytest.raises(ValueError, match=r"records have a field `charge` of their own"):
            make(tmp_path / "a.extxyz", tmp_path / "b", Options(Sizes(10, 5), keys=Keys(targets=("charge",))))

    def test_energies_only(self, tmp_path):
        frames = [frame_with("CH4", seed) for seed in range(20)]
        for atoms in frames:
            del atoms.calc.results["forces"]
        ase.io.write(tmp_path / "a.extxyz", frames, format="extxyz")
        with pytest.raises(ValueError, match=r"has no forces.*--energies-only does without"):
            make(tmp_path / "a.extxyz", tmp_path / "out", Options(Sizes(10, 5)))
        result = make(tmp_path / "a.extxyz", tmp_path / "out", Options(Sizes(10, 5), energies_only=True))
        assert "forces" not in read(tmp_path / "out" / "train")[0]
        assert "forces:" not in str(result)
        assert not (tmp_path / "out" / "normalizer_forces.npz").exists()

    def test_charged_structures(self, tmp_path):
        frames = [frame_with("CH4", seed) for seed in range(20)]
        frames[3].info["charge"] = -1
        ase.io.write(tmp_path / "a.extxyz", frames, format="extxyz")
        result = make(tmp_path / "a.extxyz", tmp_path / "out", Options(Sizes(10, 5)))
        assert "warning: charged structures (1 of -1): the models know no charge" in str(result)


def write_iso17(folder):
    """The layout of iso17.tar.gz: energies among a row's pairs, forces in its data, ids from 1."""
    folder.mkdir()
    for name, seeds in (("reference", range(30)), ("test_within", range(30, 35)), ("test_other", range(40, 50))):
        with ase.db.connect(folder / f"{name}.db") as database:
            for seed in seeds:
                atoms, energy, forces = frame("CH3OH", seed)
                database.write(atoms, total_energy=energy, data={"atomic_forces": forces})
    (folder / "train_ids.txt").write_text("".join(f"{one}\n" for one in range(1, 21)))
    (folder / "validation_ids.txt").write_text("".join(f"{one}\n" for one in range(21, 27)))
    return folder


class TestISO17:
    def test_published_split(self, tmp_path):
        result = make(write_iso17(tmp_path / "iso17"), tmp_path / "out", Options())
        assert result.counts == {"train": 20, "val": 6, "test": 10}
        graph = read(tmp_path / "out" / "val")[0]
        assert graph.fid == 20
        np.testing.assert_allclose(graph.forces, frame("CH3OH", 20)[2], atol=1e-5)
        assert graph.energy + result.reference == pytest.approx(frame("CH3OH", 20)[1])

    def test_other_test_and_sizes(self, tmp_path):
        folder = write_iso17(tmp_path / "iso17")
        result = make(folder, tmp_path / "out", Options(Sizes(10, 4)), test=folder / "test_within.db")
        assert result.counts == {"train": 10, "val": 4, "test": 5}

    def test_ids_that_are_none(self, tmp_path):
        folder = write_iso17(tmp_path / "iso17")
        (folder / "train_ids.txt").write_text("1\nx\n")
        with pytest.raises(ValueError, match=r"train_ids.txt must have an id per line"):
            make(folder, tmp_path / "out", Options())
        (folder / "train_ids.txt").write_text("1\n99\n")
        with pytest.raises(ValueError, match=r"indices from 0 to 98, the data have 30 frames"):
            make(folder, tmp_path / "out", Options())


KCAL = units.kcal / units.mol


def write_plain_xyz(path, frames):
    """MD17's and MD22's text files: the energy alone in the comment line, forces behind the positions."""
    lines = []
    for atoms, energy, forces in frames:
        lines += [str(len(atoms)), f"{energy / KCAL}"]
        rows = zip(atoms.symbols, atoms.positions, forces / KCAL, strict=True)
        lines += [" ".join([symbol, *(f"{x:.8f}" for x in (*place, *force))]) for symbol, place, force in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


class TestPlainXYZ:
    def test_units_are_asked_for(self, tmp_path):
        source = write_plain_xyz(tmp_path / "md22.xyz", [frame("CH4", seed) for seed in range(20)])
        with pytest.raises(ValueError, match=r"does not say in which units it is: give --units; MD17 and MD22"):
            make(source, tmp_path / "out", Options(Sizes(10, 5)))
        result = make(source, tmp_path / "out", Options(Sizes(10, 5), units="kcal/mol"))
        graph = read(tmp_path / "out" / "train")[0]
        np.testing.assert_allclose(graph.forces, frame("CH4", graph.fid)[2], atol=1e-5)
        assert graph.energy + result.reference == pytest.approx(frame("CH4", graph.fid)[1])

    def test_cut(self, tmp_path):
        source = write_plain_xyz(tmp_path / "md22.xyz", [frame("CH4", seed) for seed in range(20)])
        source.write_text(source.read_text()[:-70])
        with pytest.raises(ValueError, match=r"md22.xyz, frame 19 has a row that is not element, x, y, z and a force"):
            make(source, tmp_path / "out", Options(Sizes(10, 5), units="kcal/mol"))

    def test_extended_in_kcal(self, tmp_path):
        frames = []
        for seed in range(20):
            atoms, energy, forces = frame("CH4", seed)
            atoms.calc = SinglePointCalculator(atoms, energy=energy / KCAL, forces=forces / KCAL)
            frames.append(atoms)
        ase.io.write(tmp_path / "md22.xyz", frames, format="extxyz")
        with pytest.raises(ValueError, match=r"too large for these units"):
            make(tmp_path / "md22.xyz", tmp_path / "out", Options(Sizes(10, 5)))
        assert make(tmp_path / "md22.xyz", tmp_path / "out", Options(Sizes(10, 5), units="kcal/mol")).counts["val"] == 5


class TestShipped:
    @pytest.mark.parametrize("name", ["malonaldehyde", "uracil"])
    def test_own_split(self, name, tmp_path):
        result = make(f"shipped:{name}", tmp_path / "out", Options())
        assert result.counts == {"train": 250, "val": 50, "test": 300}
        assert result.findings[0].startswith(str(shipped_molecule(name)))
        assert len(result.findings) == 1

    @pytest.mark.parametrize("name", ["benzene", "toluene", "salicylic"])
    def test_structures_to_pretrain_on(self, name, tmp_path):
        result = make(f"shipped:{name}", tmp_path / "out", Options(Sizes(190, 10), energies_only=True))
        assert result.counts == {"train": 190, "val": 10, "test": 0}
        with pytest.raises(ValueError, match="energies-only"):
            make(f"shipped:{name}", tmp_path / "other", Options(Sizes(190, 10)))

    def test_fewer_for_training_and_the_same_test(self, tmp_path):
        assert make("shipped:uracil", tmp_path / "out", Options(Sizes(100, 20))).counts["test"] == 300
        split = np.load(tmp_path / "out" / "split.npz")
        assert split["train"].max() < 300 <= split["test"].min()

    def test_unknown(self, tmp_path):
        with pytest.raises(ValueError, match=r"no molecule 'uracyl' comes with the package; did you mean 'uracil'"):
            make("shipped:uracyl", tmp_path / "out", Options())

    def test_small_and_licensed(self):
        folder = shipped_molecule("uracil").parent
        assert sum(file.stat().st_size for file in folder.iterdir()) < 420_000
        text = (folder / "LICENSES").read_text()
        assert "CC0 1.0" in text
        assert all(f"{name}.npz" in text for name in shipped_names())

    def test_they_are_those_of_the_source(self, shared_data):
        frames = open_frames(shipped_molecule("malonaldehyde"))
        source = open_frames(shared_data / "molecules" / "rmd17_malonaldehyde_test.extxyz.xz")
        for index in (0, 299):
            ours, theirs = frames.read(300 + index), source.read(index)
            np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-6)
            np.testing.assert_allclose(ours.forces, theirs.forces, atol=1e-5)
            assert ours.energy == theirs.energy


def test_no_energies_at_all(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", [Atoms("CO", positions=[[0, 0, 0], [1.1, 0, 0]])] * 3)
    with pytest.raises(ValueError, match=r"frame 0 has no energy and no forces"):
        make(tmp_path / "a.extxyz", tmp_path / "out", Options(Sizes(1, 1)))
