"""Whole relaxations: complete whatever ends them, on any number of ranks; and with a tiny model."""

from __future__ import annotations

import copy
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from ase.optimize import LBFGS
from relaxation_samples import EMTPotential, as_atoms, slab
from torch_geometric.data import Batch

from dens_plugin.relaxation import folder as relaxation_folder
from dens_plugin.relaxation.folder import RESULT, RelaxationFolder
from dens_plugin.relaxation.inputs import without_labels
from dens_plugin.relaxation.minimiser import outcomes
from dens_plugin.relaxation.potential import model_potential
from dens_plugin.relaxation.result import load_relaxations
from dens_plugin.relaxation.run import relax, require_relaxable
from dens_plugin.relaxation.settings import RelaxationSettings
from dens_plugin.testing import random_structure


class TestConfig:
    @pytest.mark.parametrize("dataset", [None, [], {}, {"train": {"src": "x"}}, {"relax": None}, {"relax": {}}])
    def test_structures_must_be_named(self, dataset):
        with pytest.raises(ValueError, match=r"dataset\.relax\.src"):
            require_relaxable({"dataset": dataset})

    def test_structures_must_exist(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"dataset\.relax\.src"):
            require_relaxable({"dataset": {"relax": {"src": str(tmp_path / "none")}}})


class StubTrainer(SimpleNamespace):
    """What `relax` asks of a trainer, with effective medium theory for a model."""

    def __init__(self, structures, results, *, weight=1.0, **relax_settings):
        model = torch.nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(weight)
        super().__init__(
            config={
                "task": {"relax": {"batch_size": 2, "fmax": 0.05, **relax_settings}},
                "optim": {},
                "model": {},
                "outputs": {"energy": {}, "forces": {}},
                "cmd": {"seed": 0, "results_dir": str(results / "results" / "now")},
            },
            relax_dataset=structures,
            device="cpu",
            model=model,
            _unwrapped_model=model,
            ema=None,
            scaler=None,
            logger=None,
            normalizers={},
            elementrefs={},
            potential=EMTPotential(),
        )

    def _forward(self, batch):
        return self.potential.predict(batch)

    def _denorm_preds(self, name, value, batch):
        return value


STRUCTURES = [slab(seed, sid=f"s/{seed}", copies=1 + seed % 2) for seed in range(5)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The result of five structures relaxed at one go, and its folder."""
    folder = relax(StubTrainer(STRUCTURES, tmp_path_factory.mktemp("whole")))
    return load_relaxations(folder / RESULT)


def assert_same_result(found, expected):
    for name, value in expected._asdict().items():
        assert np.array_equal(getattr(found, name), value, equal_nan=value.dtype.kind == "f"), name


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class TestFolder:
    def test_the_result_holds_every_structure_once(self, uninterrupted, tmp_path):
        assert uninterrupted.ids.tolist() == [f"s/{seed}" for seed in range(5)]
        assert uninterrupted.converged.all()
        assert (uninterrupted.fmax < 0.05).all()
        assert uninterrupted.energy.dtype == np.float64
        start = torch.cat([structure.pos for structure in STRUCTURES]).numpy()
        assert np.array_equal(uninterrupted.pos_initial, start)
        assert np.array_equal(uninterrupted.pos[uninterrupted.fixed], start[uninterrupted.fixed])

    def test_the_file_can_be_split_without_us(self, tmp_path):
        folder = relax(StubTrainer(STRUCTURES, tmp_path, steps=1))
        with np.load(folder / RESULT) as file:
            parts = np.split(file["pos"], file["chunk_idx"])
            assert [len(part) for part in parts] == [structure.natoms for structure in STRUCTURES]
            assert not file["converged"].any()

    def test_the_same_command_goes_on(self, uninterrupted, tmp_path):
        """Whatever ended it; what is done is not computed again."""
        trainer = StubTrainer(STRUCTURES, tmp_path)
        relaxed_by = trainer.potential.predict

        def interrupted(batch):
            if len(trainer.potential.calls) == 25:
                raise KeyboardInterrupt
            return relaxed_by(batch)

        trainer.potential.predict = interrupted
        weights = copy.deepcopy(trainer.model.state_dict())
        with pytest.raises(KeyboardInterrupt):
            relax(trainer)
        assert trainer.model.training
        assert all(torch.equal(trainer.model.state_dict()[key], value) for key, value in weights.items())
        (folder,) = (tmp_path / "results").glob("relaxed-*")
        done = {record.ids[0] for record in map(load_relaxations, folder.glob("structures/*.npz"))}
        assert 0 < len(done) < 5
        again = StubTrainer(STRUCTURES[::-1], tmp_path, batch_size=3)
        assert relax(again) == folder
        assert not done & set(itertools.chain(*again.potential.calls))
        assert_same_result(load_relaxations(folder / RESULT), uninterrupted)
        third = StubTrainer(STRUCTURES, tmp_path)
        relax(third)
        assert third.potential.calls == []

    @pytest.mark.parametrize("written", [0, 2])
    def test_a_kill_while_writing_loses_that_structure_alone(self, uninterrupted, tmp_path, written):
        """SIGKILL when half of a record is on the disk: nothing of Python's runs after it."""

        def child():
            whole, count = os.fsync, itertools.count()

            def cut(file):
                if next(count) <= written:  # what the relaxation is of comes first
                    whole(file)
                    return
                os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

            os.fsync = cut
            relax(StubTrainer(STRUCTURES, tmp_path))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        (folder,) = (tmp_path / "results").glob("relaxed-*")
        assert len(list(folder.glob("structures/*.npz"))) == written
        assert [name for name in files(folder) if name.endswith(".part")]
        relax(StubTrainer(STRUCTURES, tmp_path))
        assert_same_result(load_relaxations(folder / RESULT), uninterrupted)
        names = {f"structures/s%2F{seed}.npz" for seed in range(5)}
        assert files(folder) == {RESULT, "relaxation.json", *names}

    @pytest.mark.parametrize("size", [0, 10, 1500])
    def test_a_broken_record_is_made_again(self, uninterrupted, tmp_path, size, caplog):
        folder = relax(StubTrainer(STRUCTURES, tmp_path))
        record = folder / "structures" / "s%2F3.npz"
        record.write_bytes(record.read_bytes()[:size])
        again = StubTrainer(STRUCTURES, tmp_path)
        with caplog.at_level(logging.WARNING):
            relax(again)
        assert "s%2F3.npz" in caplog.text
        assert set(itertools.chain(*again.potential.calls)) == {"s/3"}
        assert_same_result(load_relaxations(folder / RESULT), uninterrupted)

    def test_other_weights_or_structures_are_another_relaxation(self, tmp_path):
        trainers = (
            StubTrainer(STRUCTURES[:1], tmp_path, steps=0),
            StubTrainer(STRUCTURES[:2], tmp_path, steps=0),
            StubTrainer(STRUCTURES[:1], tmp_path, steps=0, weight=2.0),
            StubTrainer(STRUCTURES[:1], tmp_path, steps=1),
        )
        assert len({relax(trainer) for trainer in trainers}) == 4

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"fmax": 0.02}, "fmax is 0.05 there and 0.02 here"),
            ({"weight": 2.0}, "the checkpoint or the model's settings are others"),
            ({"structures": STRUCTURES[:1]}, "the structures are others"),
        ],
    )
    def test_a_folder_of_another_relaxation_is_refused(self, tmp_path, change, message):
        options = {"structures": STRUCTURES[:2], "steps": 0, "out": str(tmp_path / "out")}
        relax(StubTrainer(results=tmp_path, **options))
        before = files(tmp_path / "out")
        trainer = StubTrainer(results=tmp_path, **{**options, **change})
        with pytest.raises(ValueError, match=message):
            relax(trainer)
        assert trainer.potential.calls == []
        assert files(tmp_path / "out") == before

    def test_a_folder_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        for out, message in ((tmp_path, "something other"), (tmp_path / "file", "is a file"), ("/proc/x", "cannot be")):
            with pytest.raises(ValueError, match=message):
                relax(StubTrainer(STRUCTURES, tmp_path, out=str(out)))

    @pytest.mark.parametrize("content", [b"{", b"[1]", b'{"settings": 3}', b"\xff"])
    def test_a_broken_manifest_is_named(self, tmp_path, content):
        folder = relax(StubTrainer(STRUCTURES[:1], tmp_path, steps=0))
        (folder / "relaxation.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"relaxation\.json' does not describe a relaxation"):
            relax(StubTrainer(STRUCTURES[:1], tmp_path, steps=0))

    def test_files_of_others_stay(self, tmp_path):
        """Under other names they are nobody's business; in the place of a result they are told."""
        folder = relax(StubTrainer(STRUCTURES[:1], tmp_path, steps=0))
        foreign = folder / "structures" / "mine.npz", folder / ".mine.part"
        for file in foreign:
            file.write_bytes(b"not an archive")
        relax(StubTrainer(STRUCTURES[:1], tmp_path, steps=0))
        record = folder / "structures" / "s%2F0.npz"
        np.savez(record, mine=np.zeros(3))
        for content in (record.read_bytes(), b"not an archive"):
            record.write_bytes(content)
            with pytest.raises(ValueError, match=r"s%2F0.npz' is where the result of 's/0' belongs, .*move it away"):
                relax(StubTrainer(STRUCTURES[:1], tmp_path, steps=0))
            assert record.read_bytes() == content
        assert all(file.read_bytes() == b"not an archive" for file in foreign)

    def test_a_full_disk_names_the_folder(self, tmp_path):
        """A file may not grow beyond 1 kB for a moment; afterwards the same command goes on."""
        trainer = StubTrainer(STRUCTURES[:1], tmp_path, steps=0)
        previous = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, previous[1]))
        try:
            with pytest.raises(OSError, match=r"relaxed-\w+' cannot be written to \(File too large\): make room"):
                relax(trainer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        assert not [file for file in (tmp_path / "results").rglob("*") if file.name.endswith(".part")]
        assert len(load_relaxations(relax(trainer) / RESULT).ids) == 1

    def test_trajectories_are_ases(self, uninterrupted, tmp_path):
        folder = relax(StubTrainer(STRUCTURES[:1], tmp_path, trajectory="full"))
        frames = read(folder / "trajectories" / "s%2F0.traj", index=":")
        assert len(frames) == uninterrupted.steps[0] + 1
        assert np.array_equal(frames[0].positions, STRUCTURES[0].pos.double().numpy())
        assert frames[-1].get_potential_energy() == uninterrupted.energy[0]
        assert np.linalg.norm(frames[-1].get_forces(), axis=1).max() < 0.05
        assert np.array_equal(frames[-1].constraints[0].index, np.flatnonzero(STRUCTURES[0].fixed == 1))

    def test_what_did_not_fit_is_tried_again(self, uninterrupted, tmp_path, caplog):
        trainer = StubTrainer(STRUCTURES, tmp_path)
        plain = trainer.potential.predict

        def small(batch):
            if batch.num_nodes > 5:
                raise MemoryError
            return plain(batch)

        trainer.potential.predict = small
        with caplog.at_level(logging.WARNING):
            folder = relax(trainer)
        assert "s/1 (9 atoms) does not fit" in caplog.text
        found = load_relaxations(folder / RESULT)
        assert found.counts() == {"converged": 3, "out_of_steps": 0, "not_finite": 0, "out_of_memory": 2}
        assert np.isnan(found.energy[[1, 3]]).all()
        relax(StubTrainer(STRUCTURES, tmp_path))
        assert_same_result(load_relaxations(folder / RESULT), uninterrupted)

    def test_waiting_for_lost_ranks_ends(self, tmp_path, monkeypatch):
        monkeypatch.setattr(relaxation_folder, "_POLL_SECONDS", 0.01)
        monkeypatch.setattr(relaxation_folder, "_PATIENCE_SECONDS", 0.05)
        folder = RelaxationFolder(relax(StubTrainer(STRUCTURES[:1], tmp_path, steps=0)))
        folder.wait(["s/0"])
        with pytest.raises(TimeoutError, match="1 structures are missing"):
            folder.wait(["s/0", "s/1"])


def rank_main(rank, world_size, port, folder, structures):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        relax(StubTrainer(structures, folder, batch_size=1))
    except ValueError as error:
        (folder / f"error{rank}").write_text(str(error))
    torch.distributed.barrier()
    os._exit(0)  # taking a gloo group down hangs now and then in forked processes


def on_ranks(world_size, folder, structures):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (world_size, port, folder, structures)
    torch.multiprocessing.start_processes(rank_main, arguments, nprocs=world_size, start_method="fork")


class TestRanks:
    def test_any_number_of_ranks_gives_one_result(self, uninterrupted, tmp_path):
        """Begun on one, gone on with on three, of which one finds nothing to do."""
        folder = relax(StubTrainer(STRUCTURES, tmp_path))
        kept = {"s%2F0.npz", "s%2F4.npz", "s%2F3.npz"}
        for record in folder.glob("structures/*.npz"):
            if record.name not in kept:
                record.unlink()
        (folder / RESULT).unlink()
        on_ranks(3, tmp_path, STRUCTURES)
        assert_same_result(load_relaxations(folder / RESULT), uninterrupted)

    def test_an_error_reaches_all_ranks(self, tmp_path):
        on_ranks(2, tmp_path, [*STRUCTURES[:2], STRUCTURES[0]])
        errors = {(tmp_path / f"error{rank}").read_text() for rank in range(2)}
        assert len(errors) == 1
        assert "'s/0'" in errors.pop()


class TestLabels:
    def test_metrics_compare_each_structure_with_its_own_label(self, tmp_path):
        labelled = [copy.copy(structure) for structure in STRUCTURES]
        expected = load_relaxations(relax(StubTrainer(STRUCTURES, tmp_path / "plain")) / RESULT)
        errors = np.array([0.01, -0.03, 0.0, 0.5, 0.015])
        for structure, energy, pos, error in zip(
            labelled, expected.energy, np.split(expected.pos, expected.chunk_idx), errors, strict=True
        ):
            structure.y_relaxed = float(energy - error)
            structure.pos_relaxed = torch.from_numpy(pos) + structure.cell[0, 0]  # a lattice vector away is the same
        metrics = load_relaxations(relax(StubTrainer(labelled, tmp_path)) / RESULT).metrics()
        assert metrics["energy_mae"] == pytest.approx(np.abs(errors).mean())
        assert metrics["energy_within_threshold"] == pytest.approx(3 / 5)
        assert metrics["positions_average_distance_within_threshold"] == 1.0
        assert (metrics["energy_count"], metrics["positions_count"]) == (5, 5)

    def test_moved_labels_are_seen(self, uninterrupted):
        moved = uninterrupted._replace(
            energy_relaxed=np.full(5, np.nan), pos_relaxed=uninterrupted.pos + np.array([0.1, 0, 0], dtype=np.float32)
        )
        metrics = moved.metrics()
        assert "energy_mae" not in metrics
        # thresholds 0.01, 0.011, ... 0.499: those above 0.1 hold
        assert metrics["positions_average_distance_within_threshold"] == pytest.approx(399 / 490, abs=0.01)
        assert metrics["positions_mae"] == pytest.approx(0.1 / 3, abs=1e-5)

    def test_no_labels_no_metrics(self, uninterrupted):
        assert uninterrupted.metrics() == {}


class PotentialCalculator(Calculator):
    """A potential for ASE's own optimiser."""

    implemented_properties = ("energy", "forces")

    def __init__(self, potential, structure):
        super().__init__()
        self.potential, self.structure = potential, structure

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        moved = copy.copy(self.structure)
        moved.pos = torch.tensor(atoms.positions, dtype=torch.float32)
        found = self.potential.predict(Batch.from_data_list([moved]))
        self.results = {"energy": found["energy"].item(), "forces": found["forces"].double().numpy()}


class TestModel:
    """With a tiny EquiformerV2 of random weights, through the trainer."""

    @pytest.fixture
    def trainer(self, config, build, data):
        config["dataset"]["relax"] = {"src": str(data / "val")}
        config["task"]["relax"] = {"fmax": 0.7, "steps": 30, "batch_size": 4}
        config["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"] = 100.0
        return build(config)

    def test_relaxes_a_data_set(self, trainer):
        before = [parameter.clone() for parameter in trainer.model.parameters()]
        trainer.ema.shadow_params = [value * 0.9 for value in trainer.ema.shadow_params]
        result = load_relaxations(relax(trainer) / RESULT)
        assert all(torch.equal(now, then) for now, then in zip(trainer.model.parameters(), before, strict=True))
        assert result.ids.tolist() == [str(sid) for sid in range(12, 18)]
        assert (result.converged & (result.steps > 0)).any()
        assert np.array_equal(result.converged, result.fmax < 0.7)
        assert np.array_equal(result.pos[result.fixed], result.pos_initial[result.fixed])
        with model_potential(trainer) as potential:
            for at, pos in enumerate(np.split(result.pos, result.chunk_idx)):
                structure = without_labels(trainer.relax_dataset[at])
                structure.pos = torch.from_numpy(pos)
                found = potential.predict(Batch.from_data_list([structure]))
                fmax = found["forces"][structure.fixed == 0].norm(dim=1).max().item()
                assert fmax == pytest.approx(result.fmax[at], rel=0.02)  # random frames on a grid of 6 points
                assert found["energy"].item() == pytest.approx(result.energy[at], abs=0.02)

    def test_walks_as_ase_does(self, trainer):
        structure = without_labels(trainer.relax_dataset[0])
        settings = RelaxationSettings(steps=4, fmax=1e-4)
        with model_potential(trainer) as potential:
            (outcome,) = outcomes([structure], potential, settings)
            atoms = as_atoms(structure)
            atoms.set_constraint(relaxation_folder.FixAtoms(mask=(structure.fixed == 1).numpy()))
            atoms.calc = PotentialCalculator(potential, structure)
            LBFGS(atoms, **settings.optimizer, logfile=None).run(fmax=1e-4, steps=4)
        moved = np.abs(outcome.frames[-1].pos - structure.pos.numpy()).max()
        assert moved > 0.05
        assert np.abs(outcome.frames[-1].pos - atoms.positions).max() < 1e-2 * moved

    def test_a_model_without_forces_is_refused(self, trainer):
        del trainer.config["outputs"]["forces"]
        with pytest.raises(ValueError, match="no `forces`"):
            relax(trainer)

    def test_elements_that_the_model_does_not_know_are_refused(self, trainer):
        trainer.relax_dataset = [random_structure(3)]
        trainer.relax_dataset[0].atomic_numbers[1] = 95
        with pytest.raises(ValueError, match="elements 1 to 89, and 0 has another"):
            relax(trainer)
