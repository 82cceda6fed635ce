"""The loop as a GPU sees it: nothing is read within a step, and nothing is lost by reading late."""

from __future__ import annotations

import math

import pytest
import torch
from rank_runs import assert_same_run, final_state

from dens_plugin.objectives.base import Errors
from dens_plugin.training import loop
from dens_plugin.training.ledger import BadSteps, Entry, Ledger
from dens_plugin.training.optimizer import take_step


@pytest.fixture
def late(monkeypatch):
    """Loops that read what became of their steps only every fourth step, as on a GPU every tenth."""

    class Late(loop.TrainingLoop):
        def __init__(self, *args):
            super().__init__(*args)
            self.read_every = 4

    monkeypatch.setattr("dens_plugin.training.durable.TrainingLoop", Late)


def spoil(trainer, steps):
    """Let the loss of some steps be NaN."""
    forward = trainer._forward

    def spoilt(batch):
        out = forward(batch)
        is_bad = trainer.model.training and trainer.step in steps
        return {name: value * math.nan for name, value in out.items()} if is_bad else out

    trainer._forward = spoilt


def ended(config, build, steps):
    trainer = build(config, print_every=5)
    spoil(trainer, steps)
    trainer.train(disable_eval_tqdm=True)
    return final_state(trainer)


def test_reading_late_changes_nothing(config, build, late, monkeypatch, caplog):
    config["optim"]["max_epochs"] = 2
    found = ended(config, build, {2, 7, 12})
    told = caplog.text
    monkeypatch.undo()
    assert_same_run(found, ended(config, build, {2, 7, 12}))
    assert all(f"the loss is nan in step {step}" in told for step in (2, 7, 12))


def test_too_many_bad_steps_end_the_run_a_little_later(config, build, late):
    config["optim"] |= {"max_epochs": 2, "max_bad_steps": 1}
    trainer = build(config, print_every=50)
    spoil(trainer, {2, 3})
    with pytest.raises(FloatingPointError, match="in step 3, with "):
        trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 4


class OnGpu:
    """Whether to leave a step out, as a tensor on a GPU would be: it may go to the optimiser, and nobody may look."""

    is_cuda = True

    def __init__(self, value):
        self._value = value

    def float(self):
        return torch.tensor(float(self._value))

    def __bool__(self):
        raise AssertionError("the GPU was asked")


@pytest.mark.parametrize("leave_out", [False, True])
def test_a_fused_optimiser_decides_itself(leave_out):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.full((3,), math.nan if leave_out else 1.0)
    take_step(optimizer, leave_out=OnGpu(leave_out))
    assert torch.equal(weight, torch.ones(3)) == leave_out
    assert optimizer.state[weight]["step"] == (0 if leave_out else 1)
    assert not hasattr(optimizer, "found_inf")


class TestLedger:
    @pytest.fixture
    def ledger(self):
        return Ledger(BadSteps(1))

    @staticmethod
    def entry(names, step, loss, *, bad=False):
        errors = {"mae": Errors(torch.tensor([loss, 100.0]), torch.tensor([True, False]))}
        flags = {"norm": torch.tensor(1.0), "bad_gradient": torch.tensor(False), "is_taken": torch.tensor(not bad)}
        return Entry(step, names, torch.tensor(loss), torch.tensor(bad), errors, **flags)

    @pytest.fixture
    def names(self):
        from dens_plugin.fields import Identifiers

        return Identifiers({"sid": torch.tensor([3, 4])}, 2)

    def test_means_leave_out_bad_steps_and_rows_that_do_not_count(self, ledger, names):
        for step, loss in enumerate((1.0, math.nan, 3.0), start=1):
            ledger.add(self.entry(names, step, loss, bad=math.isnan(loss)))
        assert ledger.means() == {"loss": 2.0, "grad_norm": 1.0, "mae": 2.0}
        assert ledger.means() == {}

    def test_names_the_structures_of_a_bad_step(self, ledger, names, caplog):
        ledger.add(self.entry(names, 8, math.inf, bad=True))
        ledger.settle()
        assert "the loss is inf in step 8, with sid 3; sid 4 in the batch" in caplog.text

    def test_a_good_step_ends_a_row(self, ledger, names):
        for step, bad in enumerate((True, False, True), start=1):
            ledger.add(self.entry(names, step, math.nan if bad else 1.0, bad=bad))
        ledger.settle()
        ledger.add(self.entry(names, 4, math.nan, bad=True))
        with pytest.raises(FloatingPointError, match="and 1 bad steps before it"):
            ledger.settle()
