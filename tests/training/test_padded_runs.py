"""Runs on padded batches are those on batches as they come, to rounding, in training and evaluation."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from padded import EQUIFORMER, PAINN, PAINN_NOISE
from rank_runs import assert_same_run, final_state, run_to_the_end
from test_objectives import RUNS, history, with_objective

from dens_plugin.fields import PADDING


def changed(config, name="dens", **optim):
    """The config with another objective, without dropout, whose draws depend on sizes."""
    objective, heads = RUNS[name]
    config = copy.deepcopy(with_objective(config, objective, heads))
    config["model"]["backbone"] |= {"alpha_drop": 0.0, "drop_path_rate": 0.0}
    config["optim"] |= optim
    return config


def assert_same_rows(found, expected):
    assert len(found) == len(expected) > 0
    for row, known in zip(found, expected, strict=True):
        assert row.keys() == known.keys()
        for name, value in known.items():
            if isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name


@pytest.mark.parametrize(
    ("name", "optim"),
    [("dens", {"num_workers": 2}), ("dens beside the clean", {"accumulate_steps": 2}), ("ndem", {})],
    ids=str,
)
def test_is_the_run_without(config, build, name, optim):
    runs = []
    for pad in (False, True):
        trainer = build(changed(config, name, pad=pad, **optim))
        trainer.train(disable_eval_tqdm=True)
        runs.append(trainer)
    plain, padded = runs
    for split in ("train", "val"):
        assert_same_rows(history(padded, split), history(plain, split))
    for loader in (padded.train_loader, padded.val_loader, padded._corrupted_loader):
        assert PADDING in next(iter(loader))


@pytest.mark.parametrize("name", ["painn", "equiformer"])
def test_molecules_whose_forces_are_gradients(config, build, name):
    """Without padding the network finds its neighbours itself."""
    small = {"painn": PAINN, "equiformer": EQUIFORMER}[name]
    heads = {"energy": f"{name}{'_dens' * (name == 'painn')}_gradient_head"}
    heads["noise"] = PAINN_NOISE if name == "painn" else "equiformer_noise_head"
    config["model"] = {
        "name": "hydra",
        "pass_through_head_outputs": True,
        "otf_graph": True,
        "backbone": {"model": f"{name}_dens_plugin_backbone", **small},
        "heads": {output: {"module": module} for output, module in heads.items()},
    }
    runs = []
    for pad in (False, True):
        trainer = build({**config, "optim": {**config["optim"], "pad": pad}})
        assert (trainer._search is None) != pad
        trainer.train(disable_eval_tqdm=True)
        runs.append(trainer)
    for split in ("train", "val"):
        assert_same_rows(history(runs[1], split), history(runs[0], split))


def test_a_resumed_run_is_the_uninterrupted_one(config, build):
    config = changed(config, pad=True, max_epochs=2, checkpoint_every=4)
    whole, first = build(config), build(config)
    whole.train(disable_eval_tqdm=True)
    loss_of = first.loss
    first.loss = lambda outputs, batch: loss_of(outputs, batch) if first.step < 7 else pytest.fail("stop")
    with pytest.raises(pytest.fail.Exception):
        first.train(disable_eval_tqdm=True)
    second = build(config)
    second.load_checkpoint(str(first._folder / "checkpoint.pt"))
    assert second.step == 4
    second.train(disable_eval_tqdm=True)
    assert_same_run(final_state(second), final_state(whole))


def test_two_ranks_take_the_steps_of_two_ranks_without(config, tmp_path):
    """Whose batches have different sizes; what they sum up is divided by what counts on both."""
    config = changed(config, "ndem", max_epochs=1)
    states = []
    for pad in (False, True):
        config["optim"]["pad"] = pad
        states.append(run_to_the_end(config, tmp_path / str(pad), 2))
    plain, padded = states
    assert padded["step"] == plain["step"] > 2
    assert padded["best"].item() == pytest.approx(plain["best"].item(), rel=1e-3)
    for name in (name for name in plain if name.startswith("optimiser") and name.endswith("exp_avg")):
        assert (padded[name] - plain[name]).norm() <= 1e-3 * max(plain[name].norm().item(), 1.0), name


def test_says_sizes_and_waste(config, build, caplog):
    caplog.set_level(logging.INFO)
    build(changed(config, pad=True)).train(disable_eval_tqdm=True)
    assert "Batches of training are padded to " in caplog.text
    assert "% of the edges are ghosts in training so far." in caplog.text


def test_a_bad_step_names_real_structures_alone(config, build, caplog):
    trainer = build(changed(config, pad=True, max_epochs=1))
    loss_of = trainer.loss

    def spoilt(outputs, batch):
        loss = loss_of(outputs, batch)
        return loss._replace(value=loss.value * torch.nan, bad=torch.tensor(True)) if trainer.step == 2 else loss

    trainer.loss = spoilt
    trainer.train(disable_eval_tqdm=True)
    (line,) = [line for line in caplog.text.splitlines() if "Left out a step" in line]
    assert line.count("sid") == 2
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
