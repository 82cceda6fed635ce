"""Steps by recorded graphs are the steps that the loop takes: the same weights, averages, optimiser and figures.

A pretended recorder does on a CPU what a CUDA graph does (`graph_recorder`), and tensors say that they are on a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from graph_recorder import PretendedRecorder, as_on_a_gpu
from rank_runs import assert_same_run
from test_objectives import RUNS, with_objective

from dens_plugin.graphs import recordings
from dens_plugin.training import graphed_step
from dens_plugin.training.graphed_step import GraphedStep
from dens_plugin.training.loop import TrainingLoop
from dens_plugin.training.trainer import DeNSTrainer

STEPS = 9


@pytest.fixture(autouse=True)
def on_a_gpu():
    with as_on_a_gpu():
        yield


def state(trainer):
    """Everything that a step changes."""
    found = {f"model {key}": value for key, value in trainer._unwrapped_model.state_dict().items()}
    found |= {f"average {index}": value for index, value in enumerate(trainer.ema.shadow_params)}
    for index, values in trainer.optimizer.state_dict()["state"].items():
        found |= {f"optimiser {index} {key}": value for key, value in values.items()}
    return {key: value.clone() for key, value in found.items()}


class Run:
    """Some steps of a trainer on the same batches again and again, so that their sizes repeat.

    Args:
        trainer: of which only steps are taken.
        recorder: None for the loop's own steps.
        sizes: number of batches.
    """

    def __init__(self, trainer, recorder=None, sizes=2):
        self.trainer, self.recorder = trainer, recorder
        graphed = GraphedStep(trainer, recorder) if recorder is not None else None
        self.loop = TrainingLoop(trainer, graphed)
        self.batches = list(trainer.train_loader)[:sizes]

    def step(self, number):
        trainer = self.trainer
        trainer.step, trainer.epoch = number, number / STEPS
        batch = copy.copy(self.batches[number % len(self.batches)])
        self.loop.step(batch, disable_eval_tqdm=True)

    def steps(self, first=1, last=STEPS):
        """Take steps; returns the state after them."""
        for number in range(first, last + 1):
            self.step(number)
        return state(self.trainer)


def quiet(config):
    """Without what a loop does at the end of a step."""
    config["optim"] |= {"eval_every": 999, "checkpoint_every": 999, "max_epochs": 2}
    return config


def both(config, build, change=lambda trainer: None, sizes=2):
    """The states after the loop's own steps and after recorded ones, and the second run."""
    own, recorded = (build(config, print_every=1000) for _ in "ab")
    change(own)
    change(recorded)
    run = Run(recorded, PretendedRecorder(), sizes)
    return Run(own, sizes=sizes).steps(), run.steps(), run


@pytest.mark.parametrize("name", ["dens", "dens beside the clean", "ndem", "noisy nodes", "pretrain"])
def test_objectives(config, build, name):
    objective, heads = RUNS[name]
    decaying = {} if name == "pretrain" else {"decay_to": 0.0}
    expected, found, run = both(with_objective(quiet(config), objective | decaying, heads), build)
    assert_same_run(found, expected)
    assert run.recorder.replays == 2 * (STEPS - 4)


def test_a_bad_step_is_left_out(config, build, caplog):
    runs = [Run(build(quiet(config), print_every=1000), recorder, sizes=1) for recorder in (None, PretendedRecorder())]
    for run in runs:
        spoilt = copy.copy(run.batches[0])
        spoilt.energy = spoilt.energy * math.nan
        run.batches *= STEPS
        run.batches[7] = spoilt
    before = [run.steps(last=6) for run in runs]
    after = [run.steps(first=7, last=7) for run in runs]
    assert_same_run(after[1], after[0])
    weights = [key for key in before[1] if key.startswith("model ")]
    assert all(torch.equal(before[1][key], after[1][key]) for key in weights)
    assert caplog.text.count("Left out a step: the loss is nan in step 7") == 2
    assert_same_run(*(run.steps(first=8) for run in runs))
    assert runs[1].recorder.replays == 2 * (STEPS - 3)


def test_a_gradient_that_is_not_finite_is_left_out(config, build, caplog):
    config["optim"]["max_bad_steps"] = STEPS

    def overflow(trainer):
        trainer._label_losses["forces"] = (1e38, trainer._label_losses["forces"][1])

    expected, found, _ = both(quiet(config), build, overflow, sizes=1)
    assert_same_run(found, expected)
    assert caplog.text.count("the norm of the gradient is") == 2 * STEPS


def test_accumulated_batches(config, build):
    config["optim"]["accumulate_steps"] = 3
    expected, found, run = both(quiet(config), build, sizes=1)
    assert_same_run(found, expected)
    assert run.recorder.replays > STEPS - 3


def test_reports_are_the_same(config, build):
    rows = {}
    for name, recorder in (("own", None), ("recorded", PretendedRecorder())):
        run = Run(build(quiet(config), print_every=1000), recorder)
        run.steps()
        rows[name] = run.loop.ledger.means()
    assert rows["recorded"] == rows["own"]
    assert len(rows["own"]) > 5


class TestMoved:
    """What an evaluation or a user does between steps."""

    @pytest.fixture
    def runs(self, config, build):
        return [Run(build(quiet(config), print_every=1000), recorder) for recorder in (None, PretendedRecorder())]

    def test_averages_in_place_of_weights_for_a_while(self, runs):
        for run in runs:
            run.steps(last=6)
            averages = run.trainer.ema
            averages.load_state_dict(averages.state_dict())
            averages.store()
            averages.copy_to()
            averages.restore()
            if run.recorder is not None:
                run.loop._graphed.forget_what_moved()
        assert_same_run(*(run.steps(first=7) for run in runs))
        assert len(runs[1].recorder.recordings) == 3

    def test_weights_that_were_moved(self, runs, caplog):
        for run in runs:
            run.steps(last=6)
            for parameter in run.trainer.model.parameters():
                parameter.data = parameter.data.clone()
            if run.recorder is not None:
                run.loop._graphed.forget_what_moved()
        assert_same_run(*(run.steps(first=7) for run in runs))
        assert len(runs[1].recorder.recordings) == 6
        assert "moved in memory" in caplog.text

    def test_unnoticed_they_would_be_missed(self, runs):
        run = runs[1]
        run.steps(last=6)
        for parameter in run.trainer.model.parameters():
            parameter.data = parameter.data.clone()
        with pytest.raises(AssertionError, match="was freed"):
            run.step(7)


class TestFrozen:
    """What a graph would miss if it were not in a tensor: the pretended recorder freezes it too."""

    def differs(self, config, build):
        expected, found, _ = both(quiet(config), build)
        return any(not torch.equal(found[key], expected[key]) for key in expected)

    def test_learning_rate(self, config, build, monkeypatch):
        monkeypatch.setattr(graphed_step, "with_rates", lambda *_: contextlib.nullcontext())
        assert self.differs(config, build)

    def test_coefficient(self, config, build, monkeypatch):
        config["task"]["objective"]["decay_to"] = 0.0
        loss = DeNSTrainer.loss
        monkeypatch.setattr(DeNSTrainer, "loss", lambda self, outputs, batch, _=None: loss(self, outputs, batch))
        assert self.differs(config, build)

    def test_seed(self, config, build, monkeypatch):
        monkeypatch.setattr(graphed_step, "seed_step", lambda *_: torch.manual_seed(0))
        assert self.differs(config, build)


def test_a_step_that_asks_the_gpu_is_not_recorded(config, build, caplog):
    run = Run(build(quiet(config), print_every=1000), PretendedRecorder())
    errors = run.trainer.training_errors

    def asking(outputs, batch):
        outputs["energy"].sum().item()
        return errors(outputs, batch)

    run.trainer.training_errors = asking
    run.steps()
    assert run.recorder.replays == 0
    assert caplog.text.count("a training step waits for the device (_local_scalar_dense while") == 1


def test_what_cannot_be_recorded_is_computed_as_usual(config, build, caplog, monkeypatch):
    def fail(self, function):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(PretendedRecorder, "record", fail)
    expected, found, _ = both(quiet(config), build)
    assert_same_run(found, expected)
    assert caplog.text.count("a training step could not be recorded (operation not permitted when stream is") == 1


def test_further_sizes_are_computed_as_usual(config, build, caplog, monkeypatch):
    monkeypatch.setattr(recordings, "_MOST", 1)
    expected, found, run = both(quiet(config), build, sizes=3)
    assert_same_run(found, expected)
    assert len(run.recorder.recordings) == 2  # a batch, and the update
    assert caplog.text.count("batches have more than 1 sizes") == 1
