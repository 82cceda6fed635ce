"""``optim``: null drops a key of an included schedule; impossible numbers are refused."""

from __future__ import annotations

import copy

import pytest

from dens_plugin.checks.optim import require_numbers, require_optim, without_nulls

PLATEAU = {
    "scheduler": "ReduceLROnPlateau",
    "scheduler_params": {
        **dict.fromkeys(("lambda_type", "warmup_epochs", "warmup_factor", "lr_min_factor")),
        "factor": 0.5,
        "patience": 1,
    },
}
MULTISTEP = {
    "scheduler_params": {
        "lambda_type": "multistep",
        "warmup_epochs": 0.5,
        "warmup_factor": 0.2,
        "lr_min_factor": None,
        "decay_epochs": [1, 2],
        "decay_rate": 0.5,
    }
}


@pytest.mark.parametrize("schedule", [PLATEAU, MULTISTEP], ids=["plateau", "multistep"])
def test_null_drops_an_inherited_key(config, build, schedule):
    """As merged from an included cosine schedule and a file that takes another; down to a finished run."""
    config = copy.deepcopy(config)
    config["optim"] |= {**schedule, "max_epochs": 1, "ema_decay": None, "eval_every": 3}
    require_optim(config["optim"])
    trainer = build(config)
    assert None not in trainer.config["optim"]["scheduler_params"].values()
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step > 0


def test_without_nulls_keeps_everything_else():
    given = {"a": None, "b": {"c": None, "d": 0}, "e": [None], "f": False}
    assert without_nulls(given) == {"b": {"d": 0}, "e": [None], "f": False}
    assert given["b"] == {"c": None, "d": 0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scheduler_params", None, "optim lacks `scheduler_params`"),
        ("batch_size", 0, "optim.batch_size must be a whole number above 0, got 0"),
        ("load_balancing", "foo", "optim.load_balancing must be atoms or false, got 'foo'"),
        ("load_balancing", True, "optim.load_balancing must be atoms or false, got True"),
        (
            "load_balancing_on_error",
            "warn",
            "unknown optim.load_balancing_on_error 'warn'; allowed are raise",
        ),
        ("batch_size", True, "optim.batch_size must be a number, got True"),
        ("max_epochs", 1.5, "optim.max_epochs must be a whole number above 0, got 1.5"),
        ("lr_initial", -1, "optim.lr_initial must be a number above 0, got -1"),
        ("lr_initial", float("inf"), "optim.lr_initial must be a finite number above 0, got inf"),
        ("lr_initial", "inf", "optim.lr_initial must be a finite number above 0, got 'inf'"),
        ("lr_initial", "much", "optim.lr_initial must be a number, got 'much'"),
        ("eval_every", 0, "optim.eval_every must be a whole number of at least 1, got 0"),
        ("accumulate_steps", 0, "optim.accumulate_steps must be a whole number of at least 1, got 0"),
        ("keep_checkpoints", True, "optim.keep_checkpoints must be a whole number of at least 1, got True"),
        ("max_bad_steps", -1, "optim.max_bad_steps must be a whole number of at least 0, got -1"),
        ("ema_decay", 1.0, "optim.ema_decay must be between 0 and 1, got 1.0"),
        ("ema_warmup", 100, "optim.ema_warmup must be true or false, got 100"),
    ],
)
def test_numbers(config, key, value, message):
    with pytest.raises(ValueError, match=message):
        require_optim(config["optim"] | {key: value})


def test_minus_one_never_saves(config):
    require_optim(config["optim"] | {"checkpoint_every": -1})


def test_text_for_a_number_needs_a_trainer_that_reads_it():
    require_numbers({"lr_initial": "0.001"})
    with pytest.raises(ValueError, match=r"optim.lr_initial must be a number, got the text '1e-3'; write it without"):
        require_numbers({"lr_initial": "1e-3"}, is_text_read=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_atoms": 600}, r"optim.batch_atoms fills batches up, and optim.batch_size .*`batch_size: null`"),
        (
            {"batch_edges": 600, "batch_size": None, "load_balancing": "atoms"},
            r"optim.batch_edges fills batches up, and optim.load_balancing",
        ),
        (
            {"batch_atoms": 600, "batch_size": None, "eval_batch_size": None},
            r"optim.batch_atoms is for training; set optim.eval_batch_size",
        ),
        ({"batch_size": None}, r"optim lacks `batch_size`; set it, or `batch_atoms` or `batch_edges`"),
        ({"batch_atoms": 0, "batch_size": None}, r"optim.batch_atoms must be a whole number of at least 1, got 0"),
        ({"ema_warmup": True, "ema_decay": None}, r"optim.ema_warmup: true needs optim.ema_decay, which is missing"),
        ({"pad": "yes"}, r"optim.pad must be true or false, got 'yes'"),
        ({"pad": True, "loader_graph": False}, r"optim.pad: true needs the neighbours that loaders find; leave out"),
    ],
)
def test_how_batches_and_averages_are_made(config, changes, message):
    with pytest.raises(ValueError, match=message):
        require_optim(config["optim"] | changes)


def test_a_cosine_that_never_comes(config):
    """Warm-up and hold may last as long as the run, and no longer; those of a checkpoint are in steps."""
    optim = config["optim"] | {"max_epochs": 2}
    optim["scheduler_params"] = optim["scheduler_params"] | {"lambda_type": "held_cosine", "warmup_epochs": 0.3}
    for hold, more in ((1.7, {}), (20, {"epochs": 40})):
        require_optim({**optim, "scheduler_params": {**optim["scheduler_params"], "hold_epochs": hold, **more}})
    optim["scheduler_params"]["hold_epochs"] = 1.8
    with pytest.raises(ValueError, match=r"hold_epochs = 1.8 after warmup_epochs = 0.3 is longer than the run .* = 2"):
        require_optim(optim)
