"""QM9 in all the forms in which people have it, made small in the published layouts."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from fairchem.core.datasets import LmdbDataset
from torch_geometric.data import Batch, Data, InMemoryDataset

from dens_plugin.data.molecules.conversion import Options, convert
from dens_plugin.data.molecules.files import open_frames
from dens_plugin.data.molecules.manifest import origin_of
from dens_plugin.data.molecules.qm9 import parse_xyz
from dens_plugin.data.molecules.qm9_targets import ATOM_REFERENCES, HARTREE, TARGETS, read_exclusions
from dens_plugin.data.molecules.split import Sizes, draw_cormorant

# Molecule 1 as it is published; the one after it has an exponent of Mathematica's.
METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""  # noqa: E501
SYMBOLS = {"C": 6, "H": 1, "O": 8}


def text_of(number):
    """A file of the authors: methane, a little different for each number."""
    moved = METHANE.replace("gdb 1\t", f"gdb {number}\t").replace("-0.0126981359", f"-0.{number:02d}1")
    return moved.replace("0.0019761204", "1.9761204*^-3").replace("C\tC\t", f"C{number}\tC{number}\t")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "xyz").mkdir()
    for number in range(1, 41):
        (tmp_path / "xyz" / f"dsgdb9nsd_{number:06d}.xyz").write_text(text_of(number))
    return tmp_path / "xyz"


@pytest.fixture
def archive(folder, tmp_path):
    path = tmp_path / "dsgdb9nsd.xyz.tar.bz2"
    with tarfile.open(path, "w:bz2") as tar:
        for file in sorted(folder.iterdir(), reverse=True):
            data = file.read_bytes()
            info = tarfile.TarInfo(file.name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def sdf(folder, tmp_path):
    """MoleculeNet's pair of files, in PyG's raw folder."""
    raw = tmp_path / "pyg" / "raw"
    raw.mkdir(parents=True)
    header = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"
    rows, blocks = [header], []
    for number in range(1, 41):
        lines = text_of(number).replace("*^", "e").splitlines()
        rows.append(",".join([f"gdb_{number}", *lines[1].split()[2:], *["0"] * 4]))
        atoms = [line.split() for line in lines[2:7]]
        block = [f"gdb_{number}", " -OEChem-03231823243D", "", "  5  4  0     0  0  0  0  0  0999 V2000"]
        block += [f"{float(x):10.4f}{float(y):10.4f}{float(z):10.4f} {s}   0  0  0  0" for s, x, y, z, _ in atoms]
        blocks.append("\n".join([*block, "  1  2  1  0  0  0  0", "M  END", "$$$$"]))
    (raw / "gdb9.sdf.csv").write_text("\n".join(rows) + "\n")
    (raw / "gdb9.sdf").write_text("\n".join(blocks) + "\n")
    (raw / "uncharacterized.txt").write_text(EXCLUSIONS)
    return tmp_path / "pyg"


EXCLUSIONS = """
==========================================
Index  GDB17 SMILES  B3LYP SMILES  Corina SMILES
------------------------------------------
    3  C3  [C]  [C]
   17  C17  [C]  [C]
2 compounds
"""


def expected(number):
    words = text_of(number).splitlines()[1].split()[5:]
    return {name: t.factor * float(word) for (name, t), word in zip(TARGETS.items(), words, strict=True)}


@pytest.mark.parametrize("form", ["folder", "archive", "sdf"])
def test_all_forms_are_read_alike(form, request):
    path = request.getfixturevalue(form)
    frames = open_frames(path)
    assert frames.length == 40
    assert frames.numbers.tolist() == list(range(1, 41))
    structure = frames.read(6)
    assert structure.numbers.tolist() == [6, 1, 1, 1, 1]
    np.testing.assert_allclose(structure.positions[0], [-0.071, 1.0858041578, 0.0080009958], atol=1e-4)
    assert structure.positions[1, 2] == pytest.approx(0.0019761, abs=1e-4)  # 1.9761204*^-3
    assert structure.properties == pytest.approx(expected(7))
    assert structure.energy == pytest.approx(-40.47893 * HARTREE)
    assert structure.forces is None


def test_tensors_of_pyg(folder, tmp_path):
    """Both files that PyG makes: a list of dictionaries, and what it saves after processing."""
    parsed = [parse_xyz(text_of(number), "") for number in range(1, 41)]
    records = [
        {
            "z": torch.tensor(molecule.elements),
            "pos": torch.tensor(molecule.positions, dtype=torch.float32),
            "y": torch.tensor([[*molecule.targets, *[0.0] * 7]], dtype=torch.float32),
            "idx": molecule.number - 1,
            "smiles": molecule.smiles,
        }
        for molecule in parsed
    ]
    (tmp_path / "raw").mkdir()
    torch.save(records, tmp_path / "raw" / "qm9_v3.pt")
    InMemoryDataset.save([Data(**record) for record in records], str(tmp_path / "data_v3.pt"))
    for path in (tmp_path, tmp_path / "data_v3.pt"):
        frames = open_frames(path)
        assert frames.length == 40
        assert frames.read(6).properties == pytest.approx(expected(7), rel=1e-5)
        assert frames.read(6).molecule == "C7"
        assert frames.numbers[6] == 7
    (tmp_path / "raw" / "uncharacterized.txt").write_text("100\n")  # left out by PyG already
    assert sum(convert(tmp_path, tmp_path / "out", Options(Sizes(20, 5)), progress=False).counts.values()) == 40


def test_targets_become_fields_that_a_batch_keeps(archive, tmp_path):
    (tmp_path / "uncharacterized.txt").write_text(EXCLUSIONS)
    result = convert(archive, tmp_path / "out", Options(Sizes(20, 5)), progress=False)
    assert result.counts == {"train": 20, "val": 5, "test": 13}
    assert any("2 of 40 frames left out" in finding for finding in result.findings)
    dataset = LmdbDataset({"src": str(tmp_path / "out" / "train")})
    batch = Batch.from_data_list([dataset[0], dataset[1]])
    assert "forces" not in batch
    atoms = ATOM_REFERENCES["U0"]["C"] + 4 * ATOM_REFERENCES["U0"]["H"]
    torch.testing.assert_close(batch.energy, torch.tensor([-40.47893 * HARTREE - atoms] * 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.gap, torch.tensor([0.5048 * HARTREE] * 2))
    torch.testing.assert_close(batch.U0, batch.energy)
    torch.testing.assert_close(batch.Cv, torch.tensor([6.469] * 2))
    origin = origin_of(tmp_path / "out" / "train")
    assert origin.reference_of([6, 1, 1, 1, 1], "G") == pytest.approx(
        ATOM_REFERENCES["G"]["C"] + 4 * ATOM_REFERENCES["G"]["H"]
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["target_units"]["mu"] == "D"
    assert manifest["labels"] == ["energy", *TARGETS]
    assert (tmp_path / "out" / "normalizer_mu.npz").is_file()
    assert not (tmp_path / "out" / "normalizer_forces.npz").exists()


def test_labels_of_one_value_have_no_deviation(archive, tmp_path):
    """All molecules of the archive have the same labels; what the mean of equal numbers leaves is no scale."""
    result = convert(archive, tmp_path / "out", Options(Sizes(30, 5)), progress=False)
    assert {scale.stdev for scale in result.normalizers.values()} == {1.0}
    assert np.load(tmp_path / "out" / "normalizer_gap.npz")["rmsd"] == 1.0
    assert "the training energies have no standard deviation, as there is one energy" in str(result)
    assert "Cv have no standard deviation, as there is one value of each" in str(result)


def test_excluded_molecules_are_named_by_the_set_from_one(archive, tmp_path):
    (tmp_path / "mine.txt").write_text("1\n40\n")
    convert(archive, tmp_path / "out", Options(Sizes(30, 8), exclude=tmp_path / "mine.txt"), progress=False)
    split = np.load(tmp_path / "out" / "split.npz")
    assert sorted([*split["train"], *split["val"]]) == list(range(1, 39))


@pytest.mark.parametrize("counted", ["all", "those that are left"])
def test_split_of_the_molecules_that_are_left(counted, archive, tmp_path):
    """Splits of QM9 count all molecules, or, by users of PyG, those that are not excluded."""
    (tmp_path / "mine.txt").write_text("1\n40\n")
    count = 38 if counted != "all" else 40
    parts = {"idx_train": list(range(30)), "idx_val": list(range(30, 35)), "idx_test": list(range(35, count))}
    np.savez(tmp_path / "s.npz", **parts)
    options = Options(exclude=tmp_path / "mine.txt")
    convert(archive, tmp_path / "out", options, split_files=[tmp_path / "s.npz"], progress=False)
    split = np.load(tmp_path / "out" / "split.npz")
    assert sorted([*split["train"], *split["val"], *split["test"]]) == list(range(1, 39))
    assert split["train"].tolist() == (list(range(1, 30)) if counted == "all" else list(range(1, 31)))


class TestExclusionList:
    def test_the_authors(self, tmp_path):
        (tmp_path / "uncharacterized.txt").write_text(EXCLUSIONS)
        assert read_exclusions(tmp_path / "uncharacterized.txt") == {3, 17}

    @pytest.mark.parametrize(
        ("text", "match"),
        [("nothing\n", "no line that begins with a number"), (EXCLUSIONS.replace("2 com", "3 com"), "states 3")],
    )
    def test_others(self, text, match, tmp_path):
        (tmp_path / "u.txt").write_text(text)
        with pytest.raises(ValueError, match=match):
            read_exclusions(tmp_path / "u.txt")

    def test_one_of_other_data(self, archive, tmp_path):
        (tmp_path / "u.txt").write_text("100\n")
        with pytest.raises(ValueError, match=r"u.txt names none of the 40 frames"):
            convert(archive, tmp_path / "out", Options(Sizes(20, 5), exclude=tmp_path / "u.txt"), progress=False)


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("old", "new", "match"),
        [
            ("-0.535689", "", r"x, line 3 must be an element, x, y, z and a Mulliken charge"),
            ("H\t 1.0117", "Q\t 1.0117", r"x, line 5 must be an element"),
            ("1.0117308433", "1.01*^", r"line 5 has '1.01e' where a number belongs"),
            ("\t6.469", "", r"line 2 must have `gdb`, a number and 15 properties, got 16 words"),
            ("5\n", "9\n", r"x is not a whole file of QM9"),
        ],
    )
    def test_one_molecule(self, old, new, match):
        with pytest.raises(ValueError, match=match):
            parse_xyz(METHANE.replace(old, new, 1), "x")

    def test_archive_that_was_cut(self, archive):
        archive.write_bytes(archive.read_bytes()[:-40])
        with pytest.raises(ValueError, match=r"tar.bz2 is truncated or no tar archive"):
            open_frames(archive)

    def test_sdf_of_other_molecules(self, sdf):
        table = sdf / "raw" / "gdb9.sdf.csv"
        whole = table.read_text()
        table.write_text(whole.replace("gdb_2,", "gdb_99,"))
        with pytest.raises(ValueError, match=r"gdb_99 is 'gdb_2' in the SDF file"):
            open_frames(sdf)
        table.write_text("\n".join(whole.splitlines()[:-3]) + "\n")
        with pytest.raises(ValueError, match=r"do not have the same molecules, after 37"):
            open_frames(sdf)

    def test_alone(self, sdf):
        (sdf / "raw" / "gdb9.sdf.csv").unlink()
        with pytest.raises(FileNotFoundError, match=r"gdb9.sdf needs gdb9.sdf and gdb9.sdf.csv"):
            open_frames(sdf / "raw" / "gdb9.sdf")

    def test_atoms_on_each_other_name_the_frame_and_leave_nothing(self, folder, tmp_path):
        path = folder / "dsgdb9nsd_000007.xyz"
        path.write_text(text_of(7).replace("1.0117308433", "-0.540815069").replace("1.4637511618", "1.4475266138"))
        path.write_text(path.read_text().replace("0.0002765748", "-0.8766437152"))
        with pytest.raises(ValueError, match=r"frame 6: atom 2 is 0 Å from another"):
            convert(folder, tmp_path / "out", Options(Sizes(20, 5)), progress=False)
        assert not (tmp_path / "out").exists()

    def test_target_that_is_no_energy(self, folder, tmp_path):
        options = Options(Sizes(20, 5))
        options = options._replace(keys=options.keys._replace(energy="gap"))
        with pytest.raises(ValueError, match=r"--energy-key of QM9 is one of U0, U, H, G"):
            convert(folder, tmp_path / "out", options, progress=False)


def test_cormorants_split():
    candidates = np.arange(130_831) + 3
    split = draw_cormorant(candidates)
    assert list(map(len, split)) == [100_000, 17_748, 13_083]
    order = np.random.RandomState(0).permutation(130_831)
    assert set(split.val.tolist()) == set((order[100_000:117_748] + 3).tolist())
    with pytest.raises(ValueError, match=r"--exclude uncharacterized.txt"):
        draw_cormorant(np.arange(133_885))


def test_real_sample(shared_data, tmp_path):
    frames = open_frames(shared_data / "qm9" / "qm9_sample.extxyz.xz")
    assert frames.length == 8014
    first = frames.read(0)
    assert first.properties == pytest.approx(
        {**expected(1), "mu": 0.0, "r2": 35.3641, "Cv": 6.469}, abs=1e-4
    )  # methane
    assert first.energy == pytest.approx(first.properties["U0"])
    references = json.loads((shared_data / "qm9" / "atomrefs.json").read_text())
    for target in ("U0", "U", "H", "G"):
        assert ATOM_REFERENCES[target] == pytest.approx(references[target], abs=5e-5)
