"""ANI-1, ANI-1x and SPICE, made small in the published layouts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ase import units
from fairchem.core.datasets import LmdbDataset

from dens_plugin.data.molecules import hdf5
from dens_plugin.data.molecules.conversion import Options, convert
from dens_plugin.data.molecules.files import open_frames
from dens_plugin.data.molecules.manifest import origin_of
from dens_plugin.data.molecules.split import Sizes
from dens_plugin.data.structures import Keys

h5py = pytest.importorskip("h5py")

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
AMMONIA = np.array([[0.0, 0.0, 0.1], [0.94, 0.0, -0.3], [-0.47, 0.81, -0.3], [-0.47, -0.81, -0.3]])
MOLECULES = {"H2O": ([8, 1, 1], WATER, -76.4), "H3N": ([7, 1, 1, 1], AMMONIA, -56.5)}
SYMBOLS = {1: b"H", 7: b"N", 8: b"O"}


def conformations(shape, count, seed):
    """Positions in Å, energies in hartree and forces in hartree/Å of springs to the first shape."""
    moves = np.random.default_rng(seed).normal(scale=0.05, size=(count, *shape.shape))
    moves -= moves.mean(axis=1, keepdims=True)
    return shape + moves, 0.5 * (moves**2).sum(axis=(1, 2)), -moves


def write_ani1(path):
    with h5py.File(path, "w") as file:
        root = file.create_group("gdb11_s01")
        for place, (numbers, shape, total) in enumerate(MOLECULES.values()):
            positions, energies, _ = conformations(shape, 30, place)
            group = root.create_group(f"gdb11_s01-{place}")
            group["coordinates"], group["energies"] = positions.astype(np.float32), energies + total
            group["coordinatesHE"], group["energiesHE"] = positions, energies
            group["species"] = np.array([SYMBOLS[number] for number in numbers])
            group["smiles"] = np.array([b"O", b" "] if place == 0 else [b"N", b" "])
    return path


def write_ani1x(path):
    with h5py.File(path, "w") as file:
        for place, (name, (numbers, shape, total)) in enumerate(MOLECULES.items()):
            positions, energies, forces = conformations(shape, 30, place)
            group = file.create_group(name)
            group["atomic_numbers"], group["coordinates"] = np.array(numbers, dtype=np.uint8), positions
            group["wb97x_dz.energy"], group["wb97x_dz.forces"] = energies + total, forces
            group["ccsd(t)_cbs.energy"] = np.where(np.arange(30) < 20, energies + total, np.nan)
            group["wb97x_dz.energy"][3] = np.nan
            group["wb97x_dz.forces"][4, 1] = np.nan
    return path


def write_spice(path):
    with h5py.File(path, "w") as file:
        for place, (name, (numbers, shape, total)) in enumerate(MOLECULES.items()):
            positions, energies, forces = conformations(shape, 30, place)
            group = file.create_group(f"mol-{name}")
            group["atomic_numbers"] = np.array(numbers, dtype=np.int16)
            group["conformations"] = positions / units.Bohr
            group["dft_total_energy"], group["formation_energy"] = energies + total, energies - 0.3
            group["dft_total_gradient"] = -forces * units.Bohr
            group["smiles"] = [b"[O:1]([H:2])[H:3]" if place == 0 else b"[N+:1]([H:2])([H:3])[H:4]"]
            group["subset"] = [b"SPICE test"]
            for key, unit in (("conformations", "bohr"), ("dft_total_energy", "hartree")):
                group[key].attrs["units"] = unit
    return path


WRITERS = {"ani1": write_ani1, "ani1x": write_ani1x, "spice": write_spice}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_read(kind, tmp_path):
    frames = open_frames(WRITERS[kind](tmp_path / "a.h5"))
    positions, energies, forces = conformations(WATER, 30, 0)
    assert frames.length == (56 if kind == "ani1x" else 60)
    for index in (0, 2):  # before what is left out
        structure = frames.read(index)
        assert structure.numbers.tolist() == [8, 1, 1]
        np.testing.assert_allclose(structure.positions, positions[index], atol=1e-6)
        assert structure.energy == pytest.approx(units.Hartree * (energies[index] - 76.4))
        if kind == "ani1":
            assert structure.forces is None
        else:
            np.testing.assert_allclose(structure.forces, units.Hartree * forces[index], atol=1e-9)
    last = frames.read(frames.length - 1)
    assert last.numbers.tolist() == [7, 1, 1, 1]
    np.testing.assert_allclose(last.positions, conformations(AMMONIA, 30, 1)[0][29], atol=1e-6)


def test_what_has_no_label_is_left_out_and_said(tmp_path):
    path = write_ani1x(tmp_path / "a.h5")
    frames = open_frames(path)
    assert any("left out 4 conformations" in note for note in frames.notes)
    positions = conformations(WATER, 30, 0)[0]
    np.testing.assert_allclose(frames.read(3).positions, positions[5])
    level = open_frames(path, keys=Keys(energy="ccsd(t)_cbs.energy"))
    assert (level.length, level.forces) == (40, False)


def test_gradients_of_formation_energies(tmp_path):
    frames = open_frames(write_spice(tmp_path / "a.hdf5"), keys=Keys(energy="formation_energy"))
    assert frames.read(0).energy == pytest.approx(units.Hartree * (conformations(WATER, 30, 0)[1][0] - 0.3))
    assert frames.read(0).forces is not None


@pytest.mark.parametrize("kind", WRITERS)
def test_conversion(kind, tmp_path):
    options = Options(Sizes(0.8, 0.1), split_by="conformations")
    result = convert(WRITERS[kind](tmp_path / "a.h5"), tmp_path / "out", options, progress=False)
    assert sum(result.counts.values()) in (56, 60)
    dataset = LmdbDataset({"src": str(tmp_path / "out" / "train")})
    assert ("forces" in dataset[0]) == (kind != "ani1")
    origin = origin_of(tmp_path / "out" / "train")
    for numbers, _, total in MOLECULES.values():
        assert origin.reference_of(numbers) == pytest.approx(units.Hartree * total, abs=2)
    assert origin.reference_of([1, 1]) is None  # two compositions do not tell three elements apart
    assert ("charged structures (" in str(result)) == (kind == "spice")
    assert ("charge" in dataset[0]) == (kind == "spice")


def test_whole_molecules(tmp_path):
    path = write_ani1x(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"of 2 molecules makes 0 for training and 0 .*: give larger shares"):
        convert(path, tmp_path / "out", Options(Sizes(0.1, 0.1), split_by="molecules"), progress=False)
    with pytest.raises(ValueError, match=r"has [NO], for which there is no reference energy"):
        convert(path, tmp_path / "out", Options(Sizes(1, 1), split_by="molecules"), progress=False)
    assert not (tmp_path / "out").exists()
    options = Options(Sizes(1, 1), split_by="molecules", reference="none")
    assert sorted(convert(path, tmp_path / "out", options, progress=False).counts.values()) == [0, 28, 28]


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [("C", 0), ("[NH4+]", 1), ("[O-]S(=O)(=O)[O-]", -2), ("[Ca+2:1]", 2), ("[Mg++]", 2), ("[N+:1]([H:2])[O-:3]", 0)],
)
def test_charges_of_smiles(smiles, charge):
    assert hdf5.charge_of(smiles) == charge


def test_energies_alone_need_no_forces(tmp_path):
    path = write_ani1x(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        for name in MOLECULES:
            del file[name]["wb97x_dz.forces"]
    options = Options(Sizes(0.8, 0.1), energies_only=True)
    assert convert(path, tmp_path / "out", options, progress=False).counts["train"] == 46
    assert "forces" not in LmdbDataset({"src": str(tmp_path / "out" / "train")})[0]


class TestRefusals:
    def test_without_h5py(self, tmp_path, monkeypatch):
        path = write_ani1(tmp_path / "a.h5")
        monkeypatch.setattr(hdf5, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"needs h5py: pip install 'dens-plugin\[hdf5\]'"):
            open_frames(path)

    def test_group_without_a_key(self, tmp_path):
        path = write_ani1x(tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            del file["H3N"]["wb97x_dz.forces"]
        with pytest.raises(ValueError, match=r"group H3N has no wb97x_dz.forces; .*--energy-key.*--energies-only"):
            open_frames(path)
        with pytest.raises(ValueError, match=r"group H2O has no nothing.energy"):
            open_frames(path, keys=Keys(energy="nothing.energy"))

    def test_levels_that_are_nowhere(self, tmp_path):
        path = write_ani1x(tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            for name in MOLECULES:
                file[name]["ccsd(t)_cbs.energy"][:] = np.nan
        with pytest.raises(ValueError, match=r"no conformation with ccsd\(t\)_cbs.energy"):
            open_frames(path, keys=Keys(energy="ccsd(t)_cbs.energy"))

    def test_damaged_file(self, tmp_path):
        path = write_ani1(tmp_path / "a.h5")
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"a.h5 is truncated or no HDF5 file"):
            open_frames(path)

    def test_other_content(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_group("weights")["kernel"] = np.zeros(3)
        with pytest.raises(ValueError, match=r"a group weights with kernel, which is neither ANI-1"):
            open_frames(tmp_path / "a.h5")

    def test_arrays_that_do_not_belong_together(self, tmp_path):
        path = write_ani1x(tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            del file["H2O"]["atomic_numbers"]
            file["H2O"]["atomic_numbers"] = np.array([8, 1])
        with pytest.raises(ValueError, match=r"group H2O: elements \(2,\), coordinates \(30, 3, 3\).*do not belong"):
            open_frames(path).read(0)

    def test_unknown_elements(self, tmp_path):
        path = write_ani1(tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            file["gdb11_s01/gdb11_s01-0"]["species"][0] = b"X"
        with pytest.raises(ValueError, match=r"gdb11_s01-0 names an element 'X'"):
            open_frames(path).read(0)

    def test_units_of_the_file(self, tmp_path):
        path = write_spice(tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            file["mol-H2O"]["conformations"].attrs["units"] = "angstrom"
        with pytest.raises(ValueError, match=r"conformations is in angstrom, SPICE is in hartree and bohr"):
            open_frames(path)


def test_h5py_is_not_needed_for_other_files():
    code = "import sys, dens_plugin.data.molecules.command; assert 'h5py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
