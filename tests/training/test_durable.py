"""A run that is interrupted, whenever and however, ends as the one that is not."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import math
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rank_runs import RUN_NAME, Ranks, assert_same_run, final_state, run_to_the_end
from samples import write_lmdb

from dens_plugin.testing import random_structure
from dens_plugin.training import checkpoints, loop
from dens_plugin.training import lock as lock_file
from dens_plugin.training.checkpoints import whole_or_before
from dens_plugin.training.history import FILE_NAME, read_history
from dens_plugin.training.lock import locked
from dens_plugin.training.validation import is_better

KILLS = 20
CHECKPOINTS = f"checkpoints/{RUN_NAME}"


@pytest.fixture
def config(config):
    """A run of two epochs with dropout, averages, evaluations and a checkpoint in the middle of an epoch."""
    config["optim"] |= {"max_epochs": 2, "eval_every": 4, "checkpoint_every": 2}
    config["model"] |= {"alpha_drop": 0.1, "drop_path_rate": 0.1}
    return config


class StopError(Exception):
    """Ends a run in the middle."""


def stop_at(trainer, step):
    """Let a trainer break down between the forward and the backward pass of a step."""
    loss_of = trainer.loss

    def failing(outputs, batch):
        if trainer.step == step:
            raise StopError
        return loss_of(outputs, batch)

    trainer.loss = failing


def resumed(config, build, step):
    """The final state of a run that broke down at a step and was started anew."""
    first = build(config, timestamp_id=RUN_NAME)
    stop_at(first, step)
    with pytest.raises(StopError):
        first.train(disable_eval_tqdm=True)
    second = build(config, timestamp_id=RUN_NAME)
    second.train(disable_eval_tqdm=True)
    return final_state(second)


def undisturbed(config, build):
    trainer = build(config, timestamp_id="undisturbed")
    trainer.train(disable_eval_tqdm=True)
    return final_state(trainer)


def test_a_finished_run_says_so(config, build, caplog):
    """However it was resumed: by its own name, or from a checkpoint of its."""
    first = build(config, timestamp_id=RUN_NAME)
    first.train(disable_eval_tqdm=True)
    assert "is finished" not in caplog.text
    build(config, timestamp_id=RUN_NAME).train(disable_eval_tqdm=True)
    assert "This run is finished, at step 12: nothing is trained; raise optim.max_epochs to go on" in caplog.text
    caplog.clear()
    other = build(config, timestamp_id="other")
    other.load_checkpoint(str(first._folder / "checkpoint.pt"))
    other.train(disable_eval_tqdm=True)
    assert "This run is finished, at step 12" in caplog.text


@pytest.mark.parametrize("step", [3, 8, 12])
def test_a_resumed_run_is_the_uninterrupted_one(config, build, step):
    assert_same_run(resumed(config, build, step), undisturbed(config, build))


def _stopped_in_the_evaluation_of(step, config, build):
    trainer = build(config, timestamp_id=RUN_NAME)
    forward = trainer._forward

    def failing(batch):
        if trainer.step == step and not trainer.model.training:
            raise StopError
        return forward(batch)

    trainer._forward = failing
    with pytest.raises(StopError):
        trainer.train(disable_eval_tqdm=True)
    return trainer


@pytest.mark.parametrize("scheduler", ["LambdaLR", "ReduceLROnPlateau"])
def test_stopped_in_an_evaluation(config, build, scheduler):
    """Its step is not lost with it, and the evaluation is made up for."""
    config["optim"]["scheduler"] = scheduler
    if scheduler == "ReduceLROnPlateau":
        config["optim"]["scheduler_params"] = {"factor": 0.5, "patience": 0, "mode": "max"}
    first = _stopped_in_the_evaluation_of(8, config, build)
    second = build(config, timestamp_id=RUN_NAME)
    second.load_checkpoint(str(first._folder / "checkpoint.pt"))
    assert second.step == 8
    second.train(disable_eval_tqdm=True)
    assert_same_run(final_state(second), undisturbed(config, build))
    rows = read_history(second._folder / FILE_NAME)
    assert [row["step"] for row in rows if row["split"] == "val"] == [4, 8, 12]


@pytest.mark.parametrize("eval_every", [5, 100])
def test_the_last_step_is_validated_once(config, build, eval_every):
    """Also by a run that is stopped in that very evaluation, with and without a checkpoint of the step."""
    config["optim"] |= {"eval_every": eval_every, "checkpoint_every": eval_every - 1}
    _stopped_in_the_evaluation_of(12, config, build)
    expected = undisturbed(config, build)
    for _ in range(2):  # the second has nothing left to train or to validate
        trainer = build(config, timestamp_id=RUN_NAME)
        trainer.train(disable_eval_tqdm=True)
        rows = read_history(trainer._folder / FILE_NAME)
        steps = [row["step"] for row in rows if row["split"] == "val"]
        assert steps == [*range(eval_every, 12, eval_every), 12]
        assert_same_run(final_state(trainer), expected)


def test_a_last_validation_without_a_best_is_not_repeated(config, build, monkeypatch):
    config["optim"]["eval_every"] = 100
    trainer, steps = build(config), []
    monkeypatch.setattr(trainer, "_validated", lambda *_: steps.append(trainer.step) or {})
    trainer.train(disable_eval_tqdm=True)
    assert steps == [12]


@pytest.mark.parametrize(
    "optim",
    [
        {"scheduler": "ReduceLROnPlateau", "scheduler_params": {"factor": 0.5, "patience": 0, "mode": "max"}},
        {
            "scheduler": "ReduceLROnPlateau",
            "scheduler_params": {
                "factor": 0.5,
                "patience": 0,
                "mode": "max",
                "warmup_epochs": 0.8,
                "warmup_factor": 0.1,
            },
        },
        {
            "scheduler_params": {
                "lambda_type": "held_cosine",
                "warmup_epochs": 0.3,
                "hold_epochs": 0.3,
                "warmup_factor": 0.1,
                "lr_min_factor": 0.01,
            }
        },
        {"scheduler": "StepLR", "scheduler_params": {"step_size": 3, "gamma": 0.5}},
        {"accumulate_steps": 2},
        {"checkpoint_every": -1},
    ],
    ids=str,
)
def test_with_every_kind_of_schedule(config, build, optim):
    config["optim"] |= optim
    assert_same_run(resumed(config, build, 9), undisturbed(config, build))


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_at_random_moments(config, tmp_path, world_size):
    """SIGKILL, saving included: every second step is saved, which takes about as long as the steps."""
    config["optim"]["max_epochs"] = 8 * world_size
    expected = run_to_the_end(copied(config, tmp_path / "a"), tmp_path / "undisturbed", world_size)
    config = copied(config, tmp_path / "b")
    moments = random.Random(world_size)
    kills = 0
    while kills < KILLS:
        ranks = Ranks(config, tmp_path / "killed", world_size)
        ranks.wait_until_training()
        time.sleep(moments.uniform(0, 0.25))
        if not ranks.kill():
            break
        kills += 1
    assert kills >= KILLS // 2, "the run ended before it was disturbed enough"
    assert_same_run(run_to_the_end(config, tmp_path / "killed", world_size), expected)


def copied(config, folder):
    """The config with data files that no other process has open."""
    config = copy.deepcopy(config)
    for name, split in config["dataset"].items():
        split["src"] = str(shutil.copytree(split["src"], folder / name))
    return config


def die_in(trainer, module, name, count):
    """Let the process of a trainer be killed in the so manyth call of a function."""
    original, calls = getattr(module, name), []

    def deadly(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, name, deadly)


def die_writing(trainer):
    """Let the process of a trainer be killed when its second checkpoint is half written."""
    original, calls = torch.save, []

    def deadly(state, path, *args, **kwargs):
        original(state, path, *args, **kwargs)
        calls.append(path)
        if len(calls) == 3:  # the second is the best checkpoint
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = deadly


@pytest.mark.parametrize(
    "change",
    [
        die_writing,
        functools.partial(die_in, module=checkpoints, name="_sync", count=5),
        functools.partial(die_in, module=checkpoints, name="_sync", count=6),
        functools.partial(die_in, module=checkpoints, name="predecessor", count=6),
    ],
    ids=["half written", "before the sync", "after the renames", "between the renames"],
)
def test_killed_while_saving(config, tmp_path, change):
    expected = run_to_the_end(copied(config, tmp_path / "a"), tmp_path / "undisturbed")
    config = copied(config, tmp_path / "b")
    assert Ranks(config, tmp_path / "killed", 1, change).exit_codes() == [-signal.SIGKILL]
    assert_same_run(run_to_the_end(config, tmp_path / "killed"), expected)


class TestLock:
    @staticmethod
    def wait(trainer):
        """Stop in the middle of the first step."""
        trainer._forward = lambda _batch: time.sleep(600)

    def test_a_second_run_in_one_folder_is_refused(self, config, build, tmp_path):
        """By the number of the process that trains there, and for no longer than it lives."""
        ranks = Ranks(copied(config, tmp_path / "a"), tmp_path, 1, self.wait)
        ranks.wait_until_training()
        lock, trainer = tmp_path / CHECKPOINTS / lock_file.FILE_NAME, build(config, timestamp_id=RUN_NAME)
        until = time.monotonic() + 60
        while not (lock.exists() and lock.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        (process,) = ranks._context.processes
        with pytest.raises(ValueError, match=rf"another run trains in '.*' \(process {process.pid} on .*--identifier"):
            trainer.train(disable_eval_tqdm=True)
        assert ranks.kill()
        trainer.train(disable_eval_tqdm=True)
        assert trainer.step == 12
        assert lock.read_text() == ""

    def test_workers_of_a_loader_do_not_keep_it(self, config, build):
        config["optim"]["num_workers"] = 1
        trainer = build(config)
        trainer.train(disable_eval_tqdm=True)
        with locked(trainer._folder, trainer.device):
            pass


class TestSignals:
    @staticmethod
    def interrupt(trainer, *, rank, handler):
        """Let a rank receive SIGUSR2 in the middle of step 3."""
        own = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        signal.signal(signal.SIGUSR2, handler)
        forward = trainer._forward

        def interrupted(batch):
            if trainer.step == 3 and own == rank and trainer._unwrapped_model.training:
                os.kill(os.getpid(), signal.SIGUSR2)
            return forward(batch)

        trainer._forward = interrupted

    @pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (2, 1)])
    def test_are_obeyed_by_all_ranks_at_the_end_of_the_step(self, config, tmp_path, world_size, rank):
        expected = run_to_the_end(copied(config, tmp_path / "a"), tmp_path / "undisturbed", world_size)
        config = copied(config, tmp_path / "b")
        change = functools.partial(self.interrupt, rank=rank, handler=lambda *_: sys.exit(7))
        assert Ranks(config, tmp_path / "run", world_size, change).exit_codes() == [7] * world_size
        saved = torch.load(tmp_path / "run" / CHECKPOINTS / "checkpoint.pt", weights_only=False)
        assert saved["step"] == 3
        assert_same_run(run_to_the_end(config, tmp_path / "run", world_size), expected)

    def test_that_a_launcher_ignores_do_not_end_the_run(self, config, tmp_path):
        expected = run_to_the_end(copied(config, tmp_path / "a"), tmp_path / "undisturbed")
        change = functools.partial(self.interrupt, rank=0, handler=lambda *_: None)
        assert_same_run(run_to_the_end(copied(config, tmp_path / "b"), tmp_path / "run", 1, change), expected)

    def test_are_the_launchers_again_after_training(self, config, build):
        def handler(*_):
            """Of a launcher."""

        before = signal.signal(signal.SIGUSR2, handler)
        try:
            build(config).train(disable_eval_tqdm=True)
            assert signal.getsignal(signal.SIGUSR2) is handler
        finally:
            signal.signal(signal.SIGUSR2, before)


class TestBadSteps:
    @staticmethod
    def spoil(trainer, *, steps, rank=0, what="loss"):
        """Let a rank's loss, or the gradients of all, be NaN in some steps."""
        own = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        forward = trainer._forward

        def spoilt(batch):
            out = forward(batch)
            if not (trainer._unwrapped_model.training and trainer.step in steps and own == rank):
                return out
            if what == "loss":
                return {name: value * math.nan for name, value in out.items()}
            for value in out.values():
                value.register_hook(lambda gradient: gradient * math.inf)
            return out

        trainer._forward = spoilt

    @pytest.mark.parametrize("what", ["loss", "gradient"])
    def test_are_left_out(self, config, build, caplog, what):
        trainer = build(config)
        self.spoil(trainer, steps={2, 5, 6}, what=what)
        taken = []
        trainer.optimizer.register_step_post_hook(lambda *_: taken.append(trainer.step))
        trainer.train(disable_eval_tqdm=True)
        assert taken == [step for step in range(1, 13) if step not in {2, 5, 6}]
        assert all(torch.isfinite(value).all() for value in final_state(trainer).values())
        assert "in step 5, with id 0_" in caplog.text
        rows = read_history(Path(trainer.config["cmd"]["checkpoint_dir"]) / FILE_NAME)
        assert all(math.isfinite(row.get("loss", 0.0)) for row in rows)

    def test_spoil_only_their_own_accumulated_step(self, config, build):
        config["optim"]["accumulate_steps"] = 2
        trainer = build(config)
        self.spoil(trainer, steps={3})
        taken = []
        trainer.optimizer.register_step_post_hook(lambda *_: taken.append(trainer.step))
        trainer.train(disable_eval_tqdm=True)
        assert taken == [2, 6, 8, 10, 12]

    def test_of_one_rank_are_left_out_by_all(self, config, tmp_path):
        """Otherwise ranks would wait for each other for ever, or take steps with different weights."""
        change = functools.partial(self.spoil, steps={2, 5}, rank=1)
        final = run_to_the_end(copied(config, tmp_path / "a"), tmp_path / "run", 2, change)
        assert final["optimiser 0 step"] == final["step"] - 2

    def test_that_are_all_steps_are_an_error(self, config, build):
        config["optim"]["max_bad_steps"] = 100
        trainer = build(config)
        self.spoil(trainer, steps=set(range(100)))
        with pytest.raises(FloatingPointError, match="all 12 steps were left out"):
            trainer.train(disable_eval_tqdm=True)

    def test_in_a_row_end_the_run_on_all_ranks(self, config, tmp_path):
        config["optim"]["max_bad_steps"] = 2
        change = functools.partial(self.spoil, steps={2, 3, 4}, rank=1)
        assert Ranks(copied(config, tmp_path / "a"), tmp_path / "run", 2, change).exit_codes() == [1, 1]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "best", "better"),
    [(NAN, None, False), (INF, None, False), (NAN, 1.0, False), (2.0, NAN, True), (2.0, None, True), (2.0, 1.0, False)],
)
def test_a_metric_that_is_not_finite_is_never_the_best(value, best, better):
    assert is_better("forces_mae", value, best) is better


@pytest.mark.parametrize("values", [[NAN] * 9, [NAN, 0.5, NAN]], ids=["never", "once"])
def test_a_run_without_a_finite_validation_ends_with_an_error(config, build, monkeypatch, values):
    trainer = build(config)
    told = iter(values)
    monkeypatch.setattr(trainer, "_validated", lambda *_: {trainer._primary_metric: {"metric": next(told)}})
    never = pytest.raises(FloatingPointError, match=r"was nan in each validation, so no best_checkpoint.pt was written")
    with never if 0.5 not in values else contextlib.nullcontext():
        trainer.train(disable_eval_tqdm=True)
    assert (trainer._folder / "best_checkpoint.pt").exists() == (0.5 in values)
    assert (trainer._folder / "checkpoint.pt").exists()


def accumulate_synchronised(trainer):
    """Let every batch be summed over ranks, as DDP does by itself."""
    loop._gradients_local = lambda _model: contextlib.nullcontext()


def test_ranks_sum_accumulated_gradients_once(config, tmp_path):
    config["optim"] |= {"accumulate_steps": 2, "optimizer": "SGD", "optimizer_params": {}, "max_epochs": 1}
    expected = run_to_the_end(copied(config, tmp_path / "a"), tmp_path / "slow", 2, accumulate_synchronised)
    found = run_to_the_end(copied(config, tmp_path / "b"), tmp_path / "fast", 2)
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value.double(), rtol=1e-4, atol=1e-5), name


class TestOwnCheckpoint:
    def test_beats_an_explicit_one(self, config, build):
        """A fine-tuning run that is requeued must not start over."""
        other = build(config)
        stop_at(other, 3)
        with pytest.raises(StopError):
            other.train(disable_eval_tqdm=True)
        explicit = str(other._folder / "checkpoint.pt")
        run = build(config, timestamp_id=RUN_NAME)
        stop_at(run, 8)
        with pytest.raises(StopError):
            run.train(disable_eval_tqdm=True)
        again = build(config, timestamp_id=RUN_NAME)
        again.load_checkpoint(explicit)
        seen = []
        again.optimizer.register_step_post_hook(lambda *_: seen.append(again.step))
        again.train(disable_eval_tqdm=True)
        assert seen[0] == 7

    @pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "no zip"])
    def test_that_is_damaged_gives_way_to_the_one_before(self, config, build, caplog, damage):
        first = build(config, timestamp_id=RUN_NAME)
        stop_at(first, 7)
        with pytest.raises(StopError):
            first.train(disable_eval_tqdm=True)
        path = first._folder / "checkpoint.pt"
        content = bytearray(path.read_bytes())
        if damage == "cut":
            content = content[: len(content) // 2]
        elif damage == "zeros":  # as some file systems leave it after a power cut
            content = bytes(len(content))
        elif damage == "no zip":
            content = b"something else"
        else:
            content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        second = build(config, timestamp_id=RUN_NAME)
        second.load_checkpoint(str(path))
        assert second.step == 4
        assert "is damaged" in caplog.text
        assert whole_or_before(path) == path.with_name("checkpoint.1.pt")  # what the command line goes on with
        second.train(disable_eval_tqdm=True)
        assert_same_run(final_state(second), undisturbed(config, build))

    def test_all_damaged_is_an_error(self, config, build):
        trainer = build(config, timestamp_id=RUN_NAME)
        trainer.train(disable_eval_tqdm=True)
        for path in trainer._folder.glob("checkpoint*.pt"):
            path.write_bytes(b"PK\x03\x04")
        with pytest.raises(ValueError, match="none of the 2 checkpoints"):
            build(config, timestamp_id=RUN_NAME).train(disable_eval_tqdm=True)

    def test_as_many_are_kept_as_asked(self, config, build):
        config["optim"]["keep_checkpoints"] = 3
        trainer = build(config)
        trainer.train(disable_eval_tqdm=True)
        steps = {
            path.name: torch.load(path, weights_only=True)["step"] for path in trainer._folder.glob("checkpoint*.pt")
        }
        assert steps == {"checkpoint.pt": 12, "checkpoint.1.pt": 10, "checkpoint.2.pt": 8}

    def test_weights_alone_keep_averages_on(self, config, build):
        """fairchem turns averaging off for a checkpoint without one, silently."""
        trainer = build(config)
        trainer.train(disable_eval_tqdm=True)
        fine_tuned = build(config)
        fine_tuned.load_checkpoint(str(trainer._folder / "best_checkpoint.pt"))
        assert fine_tuned.ema is not None
        expected = [value for value in fine_tuned._unwrapped_model.parameters() if value.requires_grad]
        assert all(
            torch.equal(found, value) for found, value in zip(fine_tuned.ema.shadow_params, expected, strict=True)
        )


class TestDisk:
    @staticmethod
    def break_saving(trainer, monkeypatch, steps):
        save = torch.save

        def failing(state, path, *args, **kwargs):
            if trainer.step in steps:
                Path(path).write_bytes(b"half")
                raise RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0")
            save(state, path, *args, **kwargs)

        monkeypatch.setattr(torch, "save", failing)

    def test_full_for_a_while_costs_nothing(self, config, build, monkeypatch, caplog):
        """Neither the checkpoint before nor the weights, which fairchem leaves replaced by their averages."""
        trainer = build(config)
        self.break_saving(trainer, monkeypatch, {4, 6})
        trainer.train(disable_eval_tqdm=True)
        assert "step 4 could not be saved" in caplog.text
        assert not list(trainer._folder.glob(".*"))
        found = final_state(trainer)
        expected = undisturbed(config, build)
        assert_same_run(found, expected)

    def test_a_logger_never_ends_a_run(self, config, build, monkeypatch, caplog):
        """Neither tensorboard, which raises what its thread met, nor the history, on a disk with no byte left."""
        trainer = build(config)

        def failing(*_args, **_kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(trainer.logger._logger, "log", failing)
        trainer.logger._path = Path("/dev/full")
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
        trainer.train(disable_eval_tqdm=True)
        assert trainer.step == 12
        assert (trainer._folder / "checkpoint.pt").exists()
        for where in ("the run's logger", "'/dev/full'"):
            told = f"could not be written to {where} (No space left on device; 0 bytes free on its disk); the run goes"
            assert caplog.text.count(told) == 1

    def test_full_at_the_end_is_an_error(self, config, build, monkeypatch):
        trainer = build(config)
        self.break_saving(trainer, monkeypatch, {12})
        with pytest.raises(
            OSError, match=r"step 12 could not be saved to '.*checkpoint.pt' \(the file.*B free.*make room"
        ):
            trainer.train(disable_eval_tqdm=True)
        assert torch.load(trainer._folder / "checkpoint.pt", weights_only=False)["step"] == 10


def assert_same_moments(trainer, other):
    pairs = zip(trainer.model.parameters(), other.model.parameters(), strict=True)
    states = [(trainer.optimizer.state[own], other.optimizer.state[others]) for own, others in pairs]
    assert any(state["exp_avg"].abs().max() > 0 for state, _ in states)
    assert all(torch.equal(own["exp_avg"], others["exp_avg"]) for own, others in states)


class TestChanges:
    @pytest.fixture
    def half(self, config, build):
        """The path of a checkpoint after 6 of 12 steps."""
        trainer = build(config)
        stop_at(trainer, 7)
        with pytest.raises(StopError):
            trainer.train(disable_eval_tqdm=True)
        return str(trainer._folder / "checkpoint.pt")

    def test_of_nothing_are_not_told(self, config, build, half, caplog):
        trainer = build(config)
        for split in ("dataset", "val_dataset"):  # the fixture gives every trainer files of its own
            trainer.config[split]["src"] = torch.load(half, weights_only=False)["config"][split]["src"]
        trainer.load_checkpoint(half)
        trainer.train(disable_eval_tqdm=True)
        assert "Resumed with a change" not in caplog.text

    def test_of_sizes_are_one_message(self, config, build, half, caplog):
        config["model"] |= {"sphere_channels": 4, "lmax_list": [2]}
        config["model"].pop("edge_channels")
        trainer = build(config)
        with pytest.raises(ValueError, match="does not fit the config: ") as error:
            trainer.load_checkpoint(half)
        told = str(error.value)
        assert "model.sphere_channels: 8 in the checkpoint, 4 now; " in told
        assert "model.lmax_list: [1] in the checkpoint, [2] now; " in told
        assert "model.edge_channels: 8 in the checkpoint, not set now; use the config of its own run" in told
        assert "size mismatch" not in told
        assert "in the checkpoint" not in caplog.text

    def test_of_config_are_told(self, config, build, half, caplog):
        config["optim"]["lr_initial"] = 5e-4
        config["task"]["objective"]["sigma"] = 0.2
        trainer = build(config)
        trainer.load_checkpoint(half)
        trainer.train(disable_eval_tqdm=True)
        assert "optim.lr_initial was 0.001 and is 0.0005" in caplog.text
        assert caplog.text.count("is 0.0005") == 1
        assert "task.objective lost nothing and gained ['task.objective.sigma']" in caplog.text

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"lr_initial": 1e-5}, "optim.lr_initial was 0.001 and is 1e-05"),
            ({"scheduler_params": {"lr_min_factor": 0.5}}, "optim.scheduler_params.lr_min_factor was 0.01 and is 0.5"),
            (
                {"scheduler_params": {"warmup_epochs": 1.5}},
                "optim.scheduler_params.warmup_epochs was 0.5 epochs and is 1.5",
            ),
            ({"max_epochs": 4}, "optim.max_epochs was 2 and is 4"),
            ({"optimizer_params": {"weight_decay": 0.2}}, "optim.optimizer_params.weight_decay was 0.001 and is 0.2"),
            ({"ema_decay": 0.5}, "optim.ema_decay was 0.99 and is 0.5"),
            (
                {"scheduler": "StepLR", "scheduler_params": {"step_size": 2, "gamma": 0.5}},
                "optim.scheduler was 'LambdaLR'",
            ),
            ({"scheduler": "ReduceLROnPlateau", "scheduler_params": {"factor": 0.5}}, "is 'ReduceLROnPlateau'"),
            (
                {"scheduler": "ReduceLROnPlateau", "scheduler_params": {"warmup_epochs": 2.0, "warmup_factor": 0.1}},
                "is 'ReduceLROnPlateau'",
            ),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_of_optim_hold(self, config, build, half, caplog, change, told):
        """Rate, decay and average from the resumed step on are those of a run that had the new settings all along."""
        for key, value in change.items():
            if "scheduler" not in change and isinstance(value, dict):
                config["optim"][key] |= value
            else:
                config["optim"][key] = value
        resumed, whole = build(config), build(config)
        resumed.load_checkpoint(half)
        resumed._take_over_changes()
        assert told in caplog.text
        assert "The settings of now hold from step 7 on" in caplog.text
        whole.step = 0
        for _ in range(6):
            whole.optimizer.step()
            whole.scheduler.step()
        for group, expected in zip(resumed.optimizer.param_groups, whole.optimizer.param_groups, strict=True):
            assert group["lr"] == pytest.approx(expected["lr"], rel=1e-9)
            assert group["weight_decay"] == expected["weight_decay"]
        assert resumed.ema.decay == whole.ema.decay == config["optim"]["ema_decay"]

    def test_of_averages_warm_up(self, config, build, half):
        """It goes on as if it had been there all along; what was saved with it resumes where it was."""
        config["optim"]["ema_warmup"] = True
        first = build(config)
        first.load_checkpoint(half)
        first._take_over_changes()
        assert first.ema.num_updates == first.step == 6
        first.train(disable_eval_tqdm=True)
        second = build(config)
        second.load_checkpoint(str(first._folder / "checkpoint.pt"))
        assert second.ema.num_updates == first.ema.num_updates == first.step

    def test_of_an_optimiser_that_keeps_more(self, config, build, half):
        config["optim"]["optimizer_params"] |= {"amsgrad": True}
        trainer = build(config)
        trainer.load_checkpoint(half)
        trainer.train(disable_eval_tqdm=True)
        assert trainer.step == 12

    def test_of_groups_keep_every_parameters_moments(self, config, build, half):
        """Weight decay that is turned off makes one group of two, in another order."""
        saved = build(config)
        saved.load_checkpoint(half)
        config["optim"]["optimizer_params"]["weight_decay"] = 0
        trainer = build(config)
        trainer.load_checkpoint(half)
        assert len(trainer.optimizer.param_groups) == 1
        assert len(saved.optimizer.param_groups) == 2
        assert_same_moments(trainer, saved)
        trainer.train(disable_eval_tqdm=True)
        assert trainer.step == 12

    def test_of_a_plateau_keep_its_reductions(self, config, build):
        config["optim"] |= {"scheduler": "ReduceLROnPlateau", "scheduler_params": {"factor": 0.5, "patience": 0}}
        trainer = build(config)
        for metric in (1.0, 2.0, 3.0):
            trainer.scheduler.step(metrics=metric)
        trainer.step, trainer._loaded_config = 6, copy.deepcopy(trainer.config)
        assert trainer.scheduler.get_lr() == pytest.approx(0.25e-3)
        trainer.config["optim"]["lr_initial"] = 1e-2
        trainer._stated_groups = [{**group, "lr": 1e-2, "initial_lr": 1e-2} for group in trainer._stated_groups]
        trainer._take_over_changes()
        assert trainer.scheduler.get_lr() == pytest.approx(0.25e-2)
        assert trainer.scheduler.scheduler.best == 1.0

    def test_of_the_batch_keep_the_epoch_and_its_learning_rate(self, config, build, half, caplog):
        before = torch.load(half, weights_only=False)["optimizer"]["param_groups"][0]["lr"]
        config["optim"] |= {"batch_size": 4, "eval_every": 3, "checkpoint_every": 3}
        trainer = build(config)
        trainer.load_checkpoint(half)
        trainer._take_over_changes()
        assert trainer.step == 3  # an epoch has 3 steps now
        assert trainer.scheduler.get_lr() == pytest.approx(before, rel=0.02)
        assert "a step had 2 structures and has 4" in caplog.text

    def test_of_the_data_are_told(self, config, build, half, caplog, tmp_path):
        structures = [random_structure(5, seed=index, sid=index) for index in range(8)]
        config["dataset"]["train"]["src"] = str(write_lmdb(tmp_path / "other", structures))
        trainer = build(config)
        trainer.load_checkpoint(half)
        trainer._take_over_changes()
        assert "the training set had 12 structures and has 8" in caplog.text


class TestEvaluation:
    def test_ends_with_a_line(self, config, build, caplog):
        caplog.set_level("INFO")
        build(config).validate(disable_tqdm=True)
        line = next(text for text in caplog.messages if text.startswith("val: "))
        assert re.fullmatch(r"val: 6 structures in \d+ s  .*forces_mae [\d.]+.*", line)

    @staticmethod
    def errors(trainer, *, folder):
        """Keep the validation metrics of the untrained model in a file."""
        metrics = trainer.validate(disable_tqdm=True)
        torch.save({name: value["metric"] for name, value in metrics.items()}, f"{folder}/metrics.pt")

    @pytest.mark.parametrize("structures", [1, 5])
    def test_means_are_exact_on_any_number_of_ranks(self, config, tmp_path, structures):
        """fairchem counts padded structures twice, and waits for ever where a rank has none."""
        sizes = [random_structure(3 + 4 * index, seed=index, sid=index) for index in range(structures)]
        config["dataset"]["val"]["src"] = str(write_lmdb(tmp_path / "uneven", sizes))
        config["model"]["use_gate_act"] = True  # its outputs do not depend on the random edge frames
        config["optim"] |= {"max_epochs": 1, "eval_every": 100}
        found = {}
        for world_size in (1, 2):
            folder = tmp_path / f"ranks{world_size}"
            run_to_the_end(
                copied(config, tmp_path / f"data{world_size}"),
                folder,
                world_size,
                functools.partial(self.errors, folder=folder),
            )
            found[world_size] = torch.load(folder / "metrics.pt", weights_only=False)
            steps = [row["step"] for row in read_history(folder / CHECKPOINTS / FILE_NAME) if row["split"] == "val"]
            assert [step for step in steps if step] == [6 // world_size]
        assert found[1].keys() == found[2].keys()
        for name, value in found[1].items():
            assert found[2][name] == pytest.approx(value, rel=1e-4), name

    def test_says_the_effective_batch(self, config, build, caplog):
        config["optim"]["accumulate_steps"] = 2
        caplog.set_level("INFO")
        build(config).train(disable_eval_tqdm=True)
        assert "Effective batch: 4 structures per step = 2 per batch x 1 ranks x 2 accumulated" in caplog.text
