"""Whole runs by recorded graphs are runs without: validation, checkpoints, resumption, bad steps and ranks.

As in `test_graphed_step`, a pretended recorder stands for CUDA's.
"""

from __future__ import annotations

import copy
import logging

import pytest
from graph_recorder import PretendedRecorder, as_on_a_gpu
from padded import EQUIFORMER
from rank_runs import assert_same_run, final_state, no_change, run_to_the_end
from test_objectives import RUNS, history, with_objective

from dens_plugin.training import graph_choice, trainer


@pytest.fixture(autouse=True)
def on_a_gpu():
    with as_on_a_gpu():
        yield


@pytest.fixture
def recorders(monkeypatch):
    """Those of the runs so far, of which all that may have one."""
    made = []

    def recorder_for(_):
        made.append(PretendedRecorder())
        return made[-1]

    for module in (graph_choice, trainer):
        monkeypatch.setattr(module, "recorder_for", recorder_for)
    return made


def long(config, **optim):
    """Three epochs of six steps on padded batches, with an evaluation and a checkpoint in between."""
    config["optim"] |= {"max_epochs": 3, "eval_every": 6, "checkpoint_every": 6, "pad": True} | optim
    return config


def ended(trainer):
    trainer.train(disable_eval_tqdm=True)
    return final_state(trainer)


def both(config, build):
    """Trainers at the end of the run without recordings and of the run with them."""
    trainers = [build(long(copy.deepcopy(config), cuda_graph=wanted)) for wanted in (False, True)]
    for each in trainers:
        each.train(disable_eval_tqdm=True)
    return trainers


def test_is_the_run_without(config, build, recorders):
    plain, recorded = both(config, build)
    assert_same_run(final_state(recorded), final_state(plain))
    for split in ("train", "val"):
        rows = [[{**row, "time": 0} for row in history(each, split)] for each in (plain, recorded)]
        assert rows[0] == rows[1]
    assert sum(recorder.replays for recorder in recorders) > 20
    assert len(recorded._inferences) > 0


def test_forces_as_gradients(config, build, recorders):
    """A second backward pass in the recording."""
    heads = {"energy": {"module": "dens_plugin.EquiformerGradientHead"}}
    heads |= {"noise": {"module": "dens_plugin.EquiformerNoiseHead"}}
    backbone = {"model": "dens_plugin.EquiformerDeNS", **EQUIFORMER}
    config["model"] = {"name": "hydra", "otf_graph": True, "pass_through_head_outputs": True}
    config["model"] |= {"backbone": backbone, "heads": heads}
    plain, recorded = both(config, build)
    assert_same_run(final_state(recorded), final_state(plain))
    assert sum(recorder.replays for recorder in recorders) > 20


def test_a_resumed_run_is_the_uninterrupted_one(config, build, recorders):
    whole, first, second = (build(long(config)) for _ in range(3))
    whole.train(disable_eval_tqdm=True)
    report = first.report
    first.report = lambda row: report(row) if first.step < 15 else pytest.fail("stop")
    with pytest.raises(pytest.fail.Exception):
        first.train(disable_eval_tqdm=True)
    second.load_checkpoint(str(first._folder / "checkpoint.pt"))
    assert second.step == 12
    assert_same_run(ended(second), final_state(whole))
    assert sum(recorder.replays for recorder in recorders) > 20


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks(config, recorders, tmp_path, accumulate):
    def require_replays(trainer):
        end = trainer.save

        def save(*args, **kwargs):
            assert not trainer._is_graphed or recorders[-1].replays > 4
            return end(*args, **kwargs)

        trainer.save = save

    optim = {"accumulate_steps": accumulate, "batch_size": 1, "max_epochs": 2, "checkpoint_every": 12, "eval_every": 12}
    runs = [
        run_to_the_end(long(copy.deepcopy(config), cuda_graph=wanted, **optim), tmp_path / str(wanted), 2, change)
        for wanted, change in ((False, no_change), (True, require_replays))
    ]
    assert_same_run(*runs)


def test_says_that_it_records(config, build, recorders, caplog):
    caplog.set_level(logging.INFO)
    del long(config)["optim"]["pad"]
    trainer = build(config)
    assert trainer._graphed_step() is not None
    assert "Batches of training are padded to" in caplog.text
    assert "Steps are recorded as CUDA graphs" in caplog.text
    config["optim"]["cuda_graph"] = False
    assert build(config)._graphed_step() is None


OBSTACLES = {
    "only torch's fused": {"optimizer_params": {"fused": False}},
    "the decay of the averages": {"ema_warmup": True},
    "optim.loader_graph is false": {"loader_graph": False, "pad": False},
    "optim.pad is false": {"pad": False},
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_says_why_not(config, build, recorders, caplog, reason):
    caplog.set_level(logging.INFO)
    assert build(long(config, **OBSTACLES[reason]))._graphed_step() is None
    assert f"Steps are computed without CUDA graphs: {reason}" in caplog.text


def test_fairchems_path_is_computed_as_usual(config, build, recorders, caplog):
    config = with_objective(config, *RUNS["dens"])
    config["model"]["backbone"]["fast"] = False
    plain, recorded = both(config, build)
    assert_same_run(final_state(recorded), final_state(plain))
    assert sum(recorder.replays for recorder in recorders) == 0
    assert "CUDA graphs: a training step waits for the device" in caplog.text


def test_a_cpu_has_none(config, build, caplog):
    assert build(long(config, cuda_graph=True))._graphed_step() is None
    assert "optim.cuda_graph: true is for CUDA; on a cpu it changes nothing." in caplog.text
