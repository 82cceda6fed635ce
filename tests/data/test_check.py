import argparse
import pickle
import shutil

import ase.db
import ase.io
import lmdb
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from fairchem.core.datasets import LmdbDataset
from fairchem.core.modules.normalization.normalizer import create_normalizer
from torch_geometric.data import Data

from dens_plugin.data import check as check_module
from dens_plugin.data.check import check
from dens_plugin.data.lmdb_file import LmdbWriter, write_metadata
from dens_plugin.data.molecules.conversion import Options, convert
from dens_plugin.data.molecules.split import Sizes
from dens_plugin.data.structures import Keys, from_data


def ethanol(index=0, *, energy=1.0, scale=1.0):
    """A molecule in a box with made-up labels, no net force, as fairchem's graph."""
    rng = np.random.default_rng(index)
    atoms = molecule("CH3CH2OH")
    forces = rng.normal(size=(len(atoms), 3)) * scale
    return Data(
        pos=torch.tensor(atoms.positions + rng.normal(scale=0.02, size=(9, 3)), dtype=torch.float32),
        cell=20 * torch.eye(3).view(1, 3, 3),
        atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.uint8),
        natoms=9,
        tags=torch.zeros(9, dtype=torch.long),
        fixed=torch.zeros(9, dtype=torch.int),
        energy=energy + rng.normal(),
        forces=torch.tensor(forces - forces.mean(axis=0), dtype=torch.float32),
        sid=0,
        fid=index,
    )


def write(folder, graphs, *, natoms=None):
    folder.mkdir(exist_ok=True)
    with LmdbWriter(folder / "data.0000.lmdb") as writer:
        for graph in graphs:
            writer.append(graph)
    write_metadata(folder, natoms or [graph.natoms for graph in graphs])
    return folder


def changed(graph, **fields):
    """A copy with other fields; None removes one."""
    copy = graph.clone()
    for name, value in fields.items():
        if value is None:
            del copy[name]
        else:
            copy[name] = value
    return copy


def at(tensor, index, value):
    copy = tensor.clone()
    copy[index] = value
    return copy


def three_with(**fields):
    """Three structures, the second one changed."""
    return [ethanol(0), changed(ethanol(1), **fields), ethanol(2)]


def labelled(atoms, energy=1.0):
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.full((len(atoms), 3), 0.0))
    return atoms


def test_numbers_are_those_of_the_data(converted):
    report = check(converted)
    dataset = LmdbDataset({"src": str(converted)})
    graphs = [dataset[i] for i in range(len(dataset))]
    numbers = report.statistics
    energies = np.array([graph.energy for graph in graphs])
    free = torch.cat([graph.forces[graph.fixed == 0] for graph in graphs]).double()
    fixed = torch.cat([graph.forces[graph.fixed == 1] for graph in graphs]).double()
    natoms = [graph.natoms for graph in graphs]
    assert (report.format, report.structures, report.checked) == ("lmdb", len(graphs), len(graphs))
    assert numbers.systems == 3
    assert numbers.atoms == pytest.approx(
        (np.mean(natoms), np.std(natoms), min(natoms), np.median(natoms), max(natoms))
    )
    assert sum(numbers.elements.values()) == sum(natoms)
    assert numbers.fixed_share == pytest.approx(len(fixed) / sum(natoms))
    assert sum(numbers.tags.values()) == sum(natoms)
    assert numbers.energy.mean == pytest.approx(energies.mean())
    assert numbers.energy.std == pytest.approx(energies.std())
    assert numbers.free_forces == pytest.approx((free.pow(2).mean().sqrt().item(), free.norm(dim=1).max().item()))
    assert numbers.fixed_forces == pytest.approx((fixed.pow(2).mean().sqrt().item(), fixed.norm(dim=1).max().item()))
    assert numbers.pbc == {"TTT": len(graphs)}


def test_sound_data_have_no_findings(converted):
    assert check(converted).findings == []


def test_the_linear_fit_recovers_element_energies(tmp_path):
    energies = {"C": -3.0, "H": -1.0, "O": -2.0}
    frames = [
        labelled(molecule(name), sum(energies[symbol] for symbol in molecule(name).symbols))
        for name in ("CH4", "H2O", "CO2", "CH3OH")
    ]
    ase.io.write(tmp_path / "frames.extxyz", frames)
    fit = check(tmp_path / "frames.extxyz").statistics.fit
    assert fit.coefficients == pytest.approx(energies)
    assert fit.residual == pytest.approx(0.0, abs=1e-9)


def test_the_normaliser_to_paste_is_one_for_fairchem(converted):
    report = check(converted)
    text = str(report)
    block = yaml.safe_load(text[text.index("transforms:") : text.index("\n\nNo defects")])
    normalizers = {name: create_normalizer(**values) for name, values in block["transforms"]["normalizer"].items()}
    assert normalizers["energy"].mean.item() == pytest.approx(report.statistics.energy.mean, abs=1e-5)
    assert normalizers["forces"].rmsd.item() == pytest.approx(report.statistics.free_forces.rms, abs=1e-5)
    assert normalizers["forces"].mean.item() == 0.0


def test_equal_energies_have_no_deviation_to_divide_by(tmp_path):
    graphs = [changed(ethanol(i), energy=-4210.1 + 1e-12 * i, forces=1e-15 * ethanol(i).forces) for i in range(5)]
    report = check(write(tmp_path / "data", graphs))
    assert str(report).count("stdev: 1.000000") == 2
    assert "there is one energy: the stdev of 1 eV in the normaliser only stands in" in str(report)


def test_finds_positions_in_bohr(tmp_path):
    graphs = [changed(ethanol(i), pos=ethanol(i).pos / 0.529177, pbc=torch.zeros(1, 3, dtype=bool)) for i in range(5)]
    assert "are positions in bohr?" in str(check(write(tmp_path / "data", graphs)))
    graphs = [changed(ethanol(i), pbc=torch.zeros(1, 3, dtype=bool)) for i in range(5)]
    assert "are positions in bohr?" not in str(check(write(tmp_path / "other", graphs)))


def test_looks_at_evenly_spaced_structures(converted):
    report = check(converted, limit=4)
    assert report.checked == 4
    assert report.statistics.systems == 3
    assert "4 evenly spaced" in str(report)


@pytest.mark.parametrize(
    ("fields", "severity", "message"),
    [
        ({"energy": float("nan")}, "error", "a NaN or infinite energy"),
        ({"forces": at(ethanol().forces, 0, torch.inf)}, "error", "NaN or infinite forces"),
        ({"pos": at(ethanol().pos, 0, torch.nan)}, "error", "NaN or infinite positions"),
        ({"energy": None}, "error", "no energy"),
        ({"forces": None}, "error", "no forces"),
        ({"pos": at(ethanol().pos, 0, ethanol().pos[1] + 0.1)}, "error", "less than 0.4 Å apart"),
        ({"pos": at(ethanol().pos, 0, ethanol().pos[1])}, "error", "less than 0.4 Å apart"),
        ({"pos": at(ethanol().pos, 0, ethanol().pos[0] + 9.0)}, "warning", "without neighbour within 5 Å"),
        ({"fixed": torch.ones(9, dtype=torch.int)}, "warning", "no free atom"),
        (
            {"forces": at(at(ethanol().forces, 0, torch.tensor([60.0, 0, 0])), 1, torch.tensor([-60.0, 0, 0]))},
            "warning",
            "a force beyond 50 eV/Å",
        ),
        ({"forces": ethanol().forces + 0.5}, "warning", "a net force although no atom is fixed"),
        ({"fid": 0}, "warning", "a sid and fid that came before"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_finds_a_planted_defect_and_names_the_structure(tmp_path, fields, severity, message):
    findings = check(write(tmp_path / "data", three_with(**fields))).findings
    assert [finding.severity for finding in findings] == [severity]
    assert message in findings[0].message
    assert f"index 1 (sid 0, fid {fields.get('fid', 1)})" in findings[0].message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"forces": ethanol().forces[:8]}, "9 atoms by pos, forces (8, 3) for (9, 3)"),
        ({"fixed": torch.zeros(10, dtype=torch.int)}, "9 atoms by pos, fixed (10,) for (9,)"),
        ({"tags": torch.zeros(9, 1, dtype=torch.long)}, "9 atoms by pos, tags (9, 1) for (9,)"),
        ({"atomic_numbers": ethanol().atomic_numbers[:7]}, "9 atoms by pos, atomic_numbers (7,) for (9,)"),
        ({"atomic_numbers": at(ethanol().atomic_numbers, 0, 0)}, "of no element: index 1 (sid 0, fid 1): 0;"),
        ({"atomic_numbers": at(ethanol().atomic_numbers, 0, 200)}, "of no element: index 1 (sid 0, fid 1): 200;"),
    ],
    ids=["forces", "fixed", "tags", "numbers", "number 0", "number 200"],
)
def test_structures_with_broken_arrays_are_named_and_left_out(tmp_path, fields, message):
    report = check(write(tmp_path / "data", three_with(**fields)))
    assert [finding.severity for finding in report.findings] == ["error"]
    assert message in report.findings[0].message
    assert "index 1 (sid 0, fid 1)" in report.findings[0].message
    others = check(write(tmp_path / "others", [ethanol(0), ethanol(2)]))
    assert report.checked == 3
    assert report.statistics == others.statistics


def test_a_data_set_of_nothing_but_broken_arrays(tmp_path):
    report = check(write(tmp_path / "data", [changed(ethanol(i), forces=ethanol().forces[:8]) for i in range(2)]))
    assert report.findings[0].message.startswith("2 structures with arrays of other sizes")
    assert "No normaliser" in str(report)


@pytest.mark.parametrize("field", ["fixed", "tags"])
def test_finds_a_field_that_only_some_structures_have(tmp_path, field):
    findings = check(write(tmp_path / "some", three_with(**{field: None}))).findings
    assert [finding.severity for finding in findings] == ["warning"]
    assert f"1 of 3 structures without `{field}`, first index 1 (sid 0, fid 1)" in findings[0].message
    assert check(write(tmp_path / "none", [changed(ethanol(i), **{field: None}) for i in range(3)])).findings == []


@pytest.mark.parametrize(("number", "symbol"), [(89, None), (90, "Th"), (92, "U")])
def test_finds_elements_that_models_refuse_by_default(tmp_path, number, symbol):
    numbers = at(ethanol().atomic_numbers, 0, number)
    findings = check(write(tmp_path / "data", three_with(atomic_numbers=numbers))).findings
    assert [finding.severity for finding in findings] == ([] if symbol is None else ["warning"])
    if symbol:
        assert f"max_num_elements 90, the default, refuse element {symbol}" in findings[0].message
        assert f"raise it to {number + 1} or more" in findings[0].message


@pytest.mark.parametrize("ends", [(0.1, 19.9), (0.0, 20.0)])
def test_atoms_overlap_through_the_periodic_boundary(tmp_path, ends):
    pos = at(at(ethanol().pos, 0, torch.tensor([0.0, 0.0, ends[0]])), 1, torch.tensor([0.0, 0.0, ends[1]]))
    findings = check(write(tmp_path / "data", three_with(pos=pos))).findings
    assert any("less than 0.4 Å apart" in finding.message for finding in findings)


def test_counts_many_and_names_three(tmp_path):
    graphs = [changed(ethanol(i), energy=float("inf")) for i in range(5)]
    message = check(write(tmp_path / "data", graphs)).findings[0].message
    assert message.startswith("5 structures with a NaN or infinite energy: index 0 (sid 0, fid 0), 1 ")
    assert "index 3" not in message


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"energy": -4000.0}, "look like total energies"),
        ({"scale": 23.06}, "kcal/mol"),
        ({"scale": 1 / 51.4}, "Hartree/Bohr"),
    ],
    ids=["total energies", "kcal/mol", "Hartree/Bohr"],
)
def test_finds_energies_and_forces_in_other_units(tmp_path, kwargs, message):
    findings = check(write(tmp_path / "data", [ethanol(i, **kwargs) for i in range(5)])).findings
    assert {finding.severity for finding in findings} == {"warning"}
    assert any(message in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("fields", "severity", "message"),
    [
        ({"pos": ethanol().pos.double()}, "warning", "`pos` in float64"),
        ({"forces": ethanol().forces.numpy()}, "warning", "`forces` of NumPy"),
        ({"atomic_numbers": ethanol().atomic_numbers.numpy()}, "warning", "`atomic_numbers` of NumPy"),
        ({"cell": 20 * torch.eye(3)}, "warning", "`cell` (3, 3)"),
        ({"natoms": None}, "warning", "no `natoms`"),
        ({"sid": None}, "warning", "no sid"),
    ],
)
def test_finds_records_that_fairchem_would_write_otherwise(tmp_path, fields, severity, message):
    graphs = three_with(**fields)
    findings = check(write(tmp_path / "data", graphs, natoms=[9, 9, 9])).findings
    assert [finding.severity for finding in findings] == [severity]
    assert f"1 structure with {message}: index 1 (sid " in findings[0].message


def test_finds_molecules_that_do_not_say_so(tmp_path):
    graphs = [changed(ethanol(i), cell=torch.zeros(1, 3, 3)) for i in range(3)]
    findings = check(write(tmp_path / "data", graphs)).findings
    assert len(findings) == 1
    assert findings[0].message.startswith("3 structures with neither pbc nor a cell: index 0 ")
    assert check(write(tmp_path / "said", [changed(g, pbc=torch.zeros(1, 3).bool()) for g in graphs])).findings == []


def test_finds_flat_crystals_and_several_periodicities(tmp_path):
    crystal, sheet = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])
    flat = torch.diag(torch.tensor([20.0, 20.0, 0.0]))[None]
    graphs = [
        changed(ethanol(0), pbc=crystal),
        changed(ethanol(1), pbc=crystal, cell=flat),
        changed(ethanol(2), pbc=sheet, cell=flat),
    ]
    messages = [finding.message for finding in check(write(tmp_path / "data", graphs)).findings]
    assert messages[0].startswith("1 structure with a periodic cell without volume: index 1 ")
    assert any("several periodicities (TTT: 2, TTF: 1): `dens` finds the neighbours of each" in m for m in messages)
    some = check(write(tmp_path / "some", [graphs[0], ethanol(1)])).findings
    assert ("error", True) in [(f.severity, "1 of 2 structures without `pbc`" in f.message) for f in some]


def test_finds_two_files_that_both_count_from_0(tmp_path):
    """Structures without fid, as of IS2RE and of test sets, are told apart by sid alone."""
    graphs = [changed(ethanol(i), sid=i, fid=None) for i in range(3)]
    folder = write(tmp_path / "data", graphs)
    with LmdbWriter(folder / "data.0001.lmdb") as writer:
        writer.append(graphs[1])
    write_metadata(folder, [9] * 4)
    findings = check(folder).findings
    assert len(findings) == 1
    assert "1 structure with a sid and fid that came before: index 3 (sid 1, fid None)" in findings[0].message
    assert "`dens predict` and `dens relax` refuse them" in findings[0].message


@pytest.mark.parametrize(("said", "match"), [(2, "says that it has 2 .* holds 3: the others"), (5, "some are missing")])
def test_a_length_that_is_wrong(tmp_path, said, match):
    folder = write(tmp_path / "data", [ethanol(i) for i in range(3)])
    with lmdb.open(str(folder / "data.0000.lmdb"), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"length", pickle.dumps(said))
        transaction.put(b"note", b"not a structure")
    with pytest.raises(ValueError, match=match):
        check(folder)


def test_a_corrupt_page_names_its_file(tmp_path):
    folder = write(tmp_path / "data", [ethanol(i) for i in range(200)])
    shutil.copy(folder / "data.0000.lmdb", folder / "data.0001.lmdb")
    write_metadata(folder, [9] * 400)
    file = folder / "data.0001.lmdb"
    whole = file.read_bytes()
    for first, step in ((2, 1), (20, 2)):  # all pages but the two of the header, and some of the leaves
        content = bytearray(whole)
        for page in range(first * 4096, len(content), step * 4096):
            content[page + 10 : page + 12] = b"\xff\xff"  # its flags
        file.write_bytes(content)
        try:  # pages of the table of structures end the reading, those of structures alone do not
            told = str(check(folder))
        except ValueError as error:
            told = str(error)
        assert "data.0001.lmdb" in told


def test_a_record_without_positions_names_the_field(tmp_path):
    report = check(write(tmp_path / "data", three_with(pos=None)))
    assert "structure 1: it has no field `pos`; it has atomic_numbers, cell" in report.findings[0].message


@pytest.mark.parametrize(("damaged", "places"), [((0, 2), "0, 2;"), (range(1, 26), "17, 18, 19, 20 and 5 more;")])
def test_damaged_records_are_named_and_left_out(tmp_path, damaged, places):
    """All of them, the first among them, with the reason for one; the others are looked at."""
    (tmp_path / "data").mkdir()
    with LmdbWriter(tmp_path / "data" / "data.0000.lmdb") as writer:
        for index in range(27):
            writer.append(b"no pickle" if index in damaged else ethanol(index, energy=float("nan")))
    write_metadata(tmp_path / "data", [9] * 27)
    first, second, *_ = check(tmp_path / "data").findings
    assert first.severity == "error"
    assert first.message.startswith(f"{len(damaged)} records that cannot be read: index ")
    assert f"{places} the first: " in first.message
    assert f"structure {damaged[0]} cannot be read (UnpicklingError" in first.message
    assert second.message.startswith(f"{27 - len(damaged)} structures with a NaN")


def test_energies_alone_are_no_error(tmp_path):
    report = check(write(tmp_path / "data", [changed(ethanol(i), forces=None) for i in range(3)]))
    assert [finding.severity for finding in report.findings] == ["warning"]
    assert "only energies and other labels can be trained on" in report.findings[0].message
    assert "  normalizer:\n    energy:" in str(report)
    assert "    forces:" not in str(report)


@pytest.mark.parametrize("names", [("REF_energy", "REF_forces"), ("energy", "force"), ("dft_energy", "dft_forces")])
def test_labels_by_other_names(tmp_path, names):
    atoms = molecule("CH3CH2OH")
    atoms.info[names[0]] = 1.0
    atoms.set_array(names[1], np.zeros((9, 3)))
    ase.io.write(tmp_path / "a.extxyz", [atoms, atoms], format="extxyz")
    messages = [finding.message for finding in check(tmp_path / "a.extxyz").findings]
    assert any(f"{names[1]}: --energy-key and --forces-key" in message for message in messages)
    report = check(tmp_path / "a.extxyz", keys=Keys(*names))
    assert report.statistics.energy.mean == 1.0
    assert report.statistics.free_forces.rms == 0
    assert not any("--forces-key" in finding.message for finding in report.findings)


def test_parts_of_what_was_made_of_molecules(tmp_path, capsys):
    convert("shipped:uracil", tmp_path / "out", Options(Sizes(20, 5, 5)), progress=False)
    check_module.run(parse(tmp_path / "out"))
    output = capsys.readouterr().out
    assert [f"data set       {tmp_path / 'out' / name} " in output for name in ("train", "val", "test")] == [True] * 3
    assert "Findings" not in output


@pytest.mark.parametrize("name", ["rmd17.npz", "ani.h5", "gdb9.sdf", "dsgdb9nsd.xyz.tar.bz2"])
def test_raw_molecules_are_sent_to_their_command(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"make LMDBs of it with `dens data molecules \S+{name} OUT`"):
        check(tmp_path / name)


def test_finds_wrong_metadata(tmp_path):
    graphs = [ethanol(i) for i in range(3)]
    wrong = check(write(tmp_path / "wrong", graphs, natoms=[9, 8, 9])).findings
    short = check(write(tmp_path / "short", graphs, natoms=[9])).findings
    missing = write(tmp_path / "missing", graphs)
    (missing / "metadata.npz").unlink()
    assert "first index 1" in wrong[0].message
    assert "counts 1 structures, the data set has 3" in short[0].message
    assert "no metadata.npz" in check(missing).findings[0].message


def test_old_names_of_the_labels(tmp_path):
    graph = ethanol()
    old = changed(graph, energy=None, forces=None, y=graph.energy, force=graph.forces)
    new, read = from_data(graph), from_data(old)
    assert read.energy == new.energy
    np.testing.assert_array_equal(read.forces, new.forces)
    assert check(write(tmp_path / "data", [old, ethanol(1)])).findings == []


def test_recognises_oc22(tmp_path):
    graph = ethanol()
    old = changed(graph, energy=None, forces=None, y=graph.energy, force=graph.forces, oc22=1, nads=1)
    folder = write(tmp_path / "data", [old])
    assert check(folder).format == "oc22_lmdb"
    assert check(folder, format="oc22_lmdb").statistics.energy.mean == pytest.approx(graph.energy)


@pytest.mark.parametrize("name", ["frames.extxyz", "frames.xyz", "frames.traj", "frames.extxyz.xz", "frames.db"])
def test_reads_files_of_ase(tmp_path, name):
    water = molecule("H2O", vacuum=5.0)
    water.set_constraint(FixAtoms([0]))
    frames = [labelled(water, -1.0), labelled(molecule("CO2", vacuum=5.0), 1.0)]
    if name.endswith(".db"):
        with ase.db.connect(tmp_path / name) as database:
            for atoms in frames:
                database.write(atoms)
    else:
        ase.io.write(tmp_path / name, frames)
    report = check(tmp_path / name)
    assert report.format == ("ase_db" if name.endswith(".db") else "ase_read_multi")
    assert report.structures == 2
    assert report.statistics.elements == {"H": 2, "C": 1, "O": 3}
    assert report.statistics.energy.std == pytest.approx(1.0)


def test_ase_read_takes_the_last_structure_of_matching_files(tmp_path):
    ase.io.write(tmp_path / "a.xyz", [labelled(molecule("H2O"), 0.0), labelled(molecule("H2O"), 2.0)])
    (tmp_path / "notes.md").write_text("not for ASE")
    report = check(tmp_path, format="ase_read", config={"pattern": "*.xyz"})
    assert (report.structures, report.statistics.energy.mean) == (1, 2.0)


def test_unlabelled_files_are_found(tmp_path):
    ase.io.write(tmp_path / "bare.extxyz", Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]]))
    report = check(tmp_path / "bare.extxyz")
    assert {"no energy" in f.message or "no forces" in f.message for f in report.findings} == {True}
    assert "No normaliser" in str(report)


def test_refuses_what_it_cannot_read(release, converted, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here does not exist"):
        check(tmp_path / "nothing-here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no structures"):
        check(tmp_path / "empty")
    (tmp_path / "text.xyz").write_text("this is no structure")
    with pytest.raises(ValueError, match=r"text\.xyz cannot be read by ASE"):
        check(tmp_path / "text.xyz")
    with pytest.raises(ValueError, match="convert it with `dens data oc20"):
        check(release / "train")
    with pytest.raises(ValueError, match="convert it with `dens data oc20"):
        check(release)
    with pytest.raises(ValueError, match="Unknown format 'lmbd': use one of auto, lmdb"):
        check(converted, format="lmbd")


def test_refuses_a_truncated_lmdb(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "data")
    file = folder / "data.0001.lmdb"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"data\.0001\.lmdb is truncated"):
        check(folder)


def test_refuses_records_that_are_no_structures(tmp_path):
    path = tmp_path / "data.0000.lmdb"
    with LmdbWriter(path) as writer:
        writer.append(b"no pickle")
    with pytest.raises(ValueError, match="structure 0 cannot be read"):
        check(path)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    check_module.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_command_line(converted, capsys):
    check_module.run(parse(converted, "--max-structures", 2))
    assert "2 evenly spaced" in capsys.readouterr().out


def test_command_line_ends_in_status_1_with_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        check_module.run(parse(write(tmp_path / "data", three_with(energy=float("nan")))))
    assert end.value.code == 1
    output = capsys.readouterr().out
    assert "error: 1 structure with a NaN" in output
    assert "Normaliser" in output
    check_module.run(parse(write(tmp_path / "warned", three_with(fid=0))))
    assert "warning: " in capsys.readouterr().out


def test_help_gives_the_exit_status(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    assert "Exit status: 0 if no finding is an error" in " ".join(capsys.readouterr().out.split())


def test_command_line_with_a_configuration(converted, tmp_path, capsys):
    config = {"dataset": {"train": {"format": "lmdb", "src": str(converted)}, "val": {"src": str(converted)}}}
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(config))
    check_module.run(parse("--config-yml", path, "--split", "val"))
    assert f"data set       {converted}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"gives no dataset\.test\.src; it has dataset\.{train, val}"):
        check_module.run(parse("--config-yml", path, "--split", "test"))
    with pytest.raises(ValueError, match="Give either PATH or --config-yml"):
        check_module.run(parse())
    config["dataset"]["train"]["src"] = [str(converted)]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"dataset\.train\.src .* is a list"):
        check_module.run(parse("--config-yml", path))
