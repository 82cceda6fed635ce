"""The command line: what it runs, and one line and exit code 2 for what a person can mend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from samples import MODEL, base_config, write_lmdb

from dens_plugin.cli import main
from dens_plugin.data import synthetic
from dens_plugin.testing import random_structure
from dens_plugin.training.history import FILE_NAME

BIN = Path(sys.executable).parent


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with data, a config in the authors' layout and one in ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    structures = [random_structure(5 + index % 3, seed=index, sid=index) for index in range(12)]
    for name, part in (("train", structures[:8]), ("val", structures[8:10]), ("test", structures[10:])):
        write_lmdb(tmp_path / name, part)
    write(tmp_path / "ours.yml", ours())
    write(tmp_path / "authors.yml", authors())
    return tmp_path


def write(path, config):
    path.write_text(yaml.safe_dump(config))
    return str(path)


def common():
    """A config without trainer, model and objective, whose paths are relative."""
    config = base_config(Path())
    config["dataset"]["test"] = {"src": "test"}
    config["optim"] |= {"num_workers": 1, "eval_every": 4, "load_balancing": "atoms"}
    return {key: config[key] for key in config if key not in ("trainer", "model", "task")}


def ours():
    return common() | {"trainer": "dens_plugin.DeNSTrainer", "model": MODEL, "task": {"objective": {"name": "dens"}}}


def authors():
    """The layout of the authors' files, as in their config for OC20 S2EF-2M, at a tiny size."""
    config = common() | {
        "trainer": "denoising_forces",
        "task": {"strict_load": True},
        "slurm": {"constraint": "volta32gb"},
    }
    config["model"] = MODEL | {
        "use_force_encoding": True,
        "use_noise_schedule_sigma_encoding": False,
        "use_tp_reparam": False,
        "use_energy_lin_ref": False,
        "load_energy_lin_ref": False,
    }
    config["optim"] |= {
        "loss_energy": "mae",
        "loss_force": "l2mae",
        "use_denoising_pos": True,
        "denoising_pos_params": {
            "prob": 0.5,
            "fixed_noise_std": True,
            "std": 0.1,
            "num_steps": 50,
            "std_low": 0.01,
            "std_high": 0.5,
            "corrupt_ratio": 0.5,
        },
        "denoising_pos_coefficient": 10,
    }
    return config


def run(*command):
    done = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def checkpoint(workplace, name="best_checkpoint.pt"):
    return str(next(workplace.glob(f"checkpoints/*/{name}")))


def test_trains_validates_and_predicts_the_authors_config(workplace):
    """All of it by `dens`, from the authors' layout."""
    run("dens", "train", "--config-yml", "authors.yml", "--cpu", "--print-every", "1")
    assert next(workplace.glob(f"checkpoints/*/{FILE_NAME}")).read_text().count("noise_mae") > 0
    output = run("dens", "validate", "--config-yml", "authors.yml", "--cpu", "--checkpoint", checkpoint(workplace))
    assert "forces_mae" in output
    run("dens", "predict", "--config-yml", "authors.yml", "--cpu", "--checkpoint", checkpoint(workplace))
    assert list(workplace.glob("results/*/ocp_predictions.npz"))


def test_plain_fairchem_trains_ours_by_dotted_path(workplace):
    """fairchem's own command, which knows of this package by the config alone."""
    run("fairchem", "--mode", "train", "--config-yml", "ours.yml", "--cpu", "--print-every", "1")
    assert "noise_mae" in next(workplace.glob(f"checkpoints/*/{FILE_NAME}")).read_text()


def test_two_local_ranks(workplace):
    """fairchem's local multi-rank launch over gloo."""
    run("dens", "train", "--config-yml", "ours.yml", "--cpu", "--num-gpus", "2", "--print-every", "1")
    assert "noise_mae" in next(workplace.glob(f"checkpoints/*/{FILE_NAME}")).read_text()


def refused(arguments, capsys):
    """The one line that the command prints when it refuses."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("dens: error:")]) == 1
    assert lines[-1].startswith("dens: error:")
    return lines[-1]


class TestRefusals:
    def train(self, workplace, capsys, **changes):
        return refused(["train", "--config-yml", write(workplace / "bad.yml", ours() | changes), "--cpu"], capsys)

    def test_missing_config(self, workplace, capsys):
        assert "nowhere.yml" in refused(["train", "--config-yml", "nowhere.yml"], capsys)

    def test_config_that_is_no_yaml(self, workplace, capsys):
        (workplace / "bad.yml").write_text("a: [1\nb: 2")
        assert "bad.yml" in refused(["train", "--config-yml", "bad.yml"], capsys)

    def test_empty_config(self, workplace, capsys):
        assert "no `dataset` block" in refused(["train", "--config-yml", write(workplace / "bad.yml", {})], capsys)

    def test_empty_file(self, workplace, capsys):
        (workplace / "bad.yml").write_text("")
        assert "the config file 'bad.yml' is empty" in refused(["train", "--config-yml", "bad.yml"], capsys)

    def test_key_of_an_included_file(self, workplace, capsys):
        write(workplace / "part.yml", {"outputs": {"forces": {"level": "atom", "train_on_free_atom": True}}})
        line = self.train(workplace, capsys, includes=["part.yml"])
        assert "unknown key 'train_on_free_atom' in outputs.forces (" in line
        assert "part.yml); did you mean 'train_on_free_atoms'?" in line

    def test_no_key_for_wandb(self, workplace, capsys, monkeypatch):
        for name, value in (("HOME", str(workplace)), ("NETRC", str(workplace / "netrc")), ("WANDB_MODE", "online")):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        assert "there is no key for it: run `wandb login`" in self.train(workplace, capsys, logger="wandb")

    def test_a_warm_start_from_a_file_without_weights(self, workplace, capsys):
        torch.save({"a": 1}, workplace / "dict.pt")
        line = self.train(workplace, capsys, task={"objective": {"name": "dens"}, "warm_start": "dict.pt"})
        assert "'dict.pt' has no `state_dict` but a: give a checkpoint that a training wrote" in line

    def test_unknown_objective(self, workplace, capsys):
        line = self.train(workplace, capsys, task={"objective": {"name": "dense"}})
        assert "unknown objective 'dense'" in line
        assert "did you mean 'dens'?" in line

    def test_unknown_setting(self, workplace, capsys):
        line = self.train(workplace, capsys, task={"objective": {"name": "dens", "probability": 0.5}})
        assert "unknown key 'probability' in task.objective" in line

    def test_impossible_sigma(self, workplace, capsys):
        line = self.train(workplace, capsys, task={"objective": {"name": "dens", "sigma": -1}})
        assert "sigma must be a positive" in line

    def test_unknown_model(self, workplace, capsys):
        assert "equiformer_v3" in self.train(workplace, capsys, model=MODEL | {"name": "equiformer_v3"})

    def test_unknown_hyper_parameter(self, workplace, capsys):
        line = self.train(workplace, capsys, model=MODEL | {"num_layer": 3})
        assert "num_layer" in line
        assert "did you mean 'num_layers'?" in line

    def test_wrong_data_path(self, workplace, capsys):
        config = ours()
        config["dataset"]["train"]["src"] = "nowhere"
        line = refused(["train", "--config-yml", write(workplace / "bad.yml", config)], capsys)
        assert "dataset.train.src: there is no 'nowhere'" in line

    def test_folder_without_data(self, workplace, capsys):
        config = ours()
        config["dataset"]["train"]["src"] = "empty"
        (workplace / "empty").mkdir()
        line = refused(["train", "--config-yml", write(workplace / "bad.yml", config)], capsys)
        assert "empty" in line

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--optim.max_epoch=1", "unknown key 'max_epoch' in optim; did you mean 'max_epochs'?"),
            ("--task.objectve.prob=0.5", "unknown key 'objectve' in task; did you mean 'objective'?"),
            ("--tsk.objective.prob=0.5", "unknown key 'tsk' in the config; did you mean 'task'?"),
            (
                "--run-dir=/proc/x",
                "--run-dir: /proc/x cannot be made because nothing can be written to the folder /proc",
            ),
            ("--loss_functions=null", "loss_functions is empty: give it a list with a block for each output"),
            ("--loss_functions=[]", "loss_functions is empty: give it a list"),
            ("--optim.batch_size=0", "optim.batch_size must be a whole number above 0, got 0"),
            ("--optim.max_epochs=abc", "optim.max_epochs must be a number, got 'abc'"),
            ("--optim.max_epochs=0", "optim.max_epochs must be"),
            ("--optim.lr_initial=-1", "optim.lr_initial must be a number above 0"),
            ("--optim.optimizer=AdamWW", "unknown optim.optimizer 'AdamWW'; did you mean 'AdamW'?"),
            ("--optim.scheduler=Foo", "unknown optim.scheduler 'Foo'"),
            ("--dataset.train.format=lmbd", "unknown dataset.train.format 'lmbd'; did you mean 'lmdb'?"),
            ("--logger=wandbb", "unknown logger 'wandbb'; did you mean 'wandb'?"),
            ("--trainer=denz", "unknown trainer 'denz'; did you mean 'dens'?"),
            ("--confg-yml", "unknown option '--confg-yml'; did you mean '--config-yml'?"),
            ("stray", "unknown option 'stray'"),
            ("--task.objective.prob", "unknown option '--task.objective.prob'"),
            ("--optim.lr=0.1", "unknown key 'lr' in optim; did you mean 'lr_initial'?"),
            ("--optim.scheduler_params=None", "optim lacks `scheduler_params`"),
            ("--optim.optimizer_params.weight_decy=0.1", "unknown key 'weight_decy' in optim.optimizer_params; did"),
            (
                "--optim.optimizer_params.weight_decay=no",
                "optim.optimizer_params.weight_decay must be a number, got 'no'",
            ),
            ("--optim.optimizer_params.betas=0.9", "optim.optimizer_params do not suit AdamW: "),
            ("--optim.optimizer_params=3", "optim.optimizer_params must be a block"),
            (
                "--optim.scheduler_params.warmup_factorr=1",
                "unknown key 'warmup_factorr' in optim.scheduler_params; did",
            ),
            (
                "--optim.scheduler_params.warmup_factor=x",
                "optim.scheduler_params.warmup_factor must be a number, got 'x'",
            ),
            ("--optim.scheduler_params.lambda_type=cosin", "lambda_type 'cosin'; did you mean 'cosine'?"),
            ("--optim.scheduler_params.lambda_type=multistep", "unknown key 'lr_min_factor' in optim.scheduler_params"),
            ("--optim.scheduler=StepLR", "unknown key 'lambda_type' in optim.scheduler_params"),
            ("--dataset.train.transforms.normalizer.energy.mean=x", "normalizer.energy.mean must be a number, got 'x'"),
            (
                "--dataset.train.transforms.normalizer.energy.std=1",
                "unknown key 'std' in dataset.train.transforms.norm",
            ),
            ("--dataset.train.transforms.normalizer.energy=1", "normalizer.energy must be a block"),
            ("--model.num_layers=0", "model.num_layers must be a whole number above 0, got 0"),
            ("--model.sphere_channels=x", "model.sphere_channels must be a number, got 'x'"),
            ("--identifier=a\nb", "identifier 'a\\nb' names folders: leave out slashes, line breaks"),
            ("--task.objective.prob=2", "task.objective: prob must be a probability"),
            ("--objective.prob=0.5", "unknown key 'objective' in the config; it belongs under `task`"),
            ("--dataset.train.transform=1", "unknown key 'transform' in dataset.train; did you mean 'transforms'?"),
            ("--print-every=0", "--print-every must be at least 1"),
            ("--num-gpus=0", "--num-gpus must be at least 1"),
            ("--loss_functions.energy=mae", "loss_functions must be a list with a block for each output"),
        ],
    )
    def test_slips(self, workplace, capsys, option, message):
        assert message in refused(["train", "--config-yml", "ours.yml", "--cpu", option], capsys)

    @pytest.mark.parametrize("arguments", [[], ["data"], ["convert"], ["trian"], ["train"]])
    def test_incomplete_commands(self, workplace, capsys, arguments):
        assert "--help" in refused(arguments, capsys)

    def test_nothing_is_left_behind(self, workplace, capsys):
        before = set(workplace.rglob("*"))
        self.train(workplace, capsys, task={"objective": {"name": "dens", "prob": 2}})
        assert set(workplace.rglob("*")) - before == {workplace / "bad.yml"}

    def test_no_checkpoint(self, workplace, capsys):
        assert "needs --checkpoint" in refused(["validate", "--config-yml", "ours.yml"], capsys)

    def test_wrong_checkpoint(self, workplace, capsys):
        line = refused(["validate", "--config-yml", "ours.yml", "--checkpoint", "none.pt", "--cpu"], capsys)
        assert "no checkpoint at 'none.pt'" in line

    def test_raw_data(self, workplace, capsys):
        assert "nowhere" in refused(["data", "oc20", "nowhere", "out"], capsys)

    def test_check_of_nothing(self, workplace, capsys):
        assert "nowhere" in refused(["data", "check", "nowhere"], capsys)


def test_synthetic_data_to_check(workplace, capsys):
    """The commands of the data layer, end to end."""
    synthetic.generate(workplace / "raw", systems=3, max_steps=5, progress=False)
    main(["data", "oc20", "raw/train", "lmdb", "--quiet"])
    main(["data", "check", "lmdb"])
    assert "normalizer" in capsys.readouterr().out


def test_error_of_a_loaders_worker_is_one_line(monkeypatch, capsys):
    """As torch hands it on: after the other process's traceback."""

    def fail(*_):
        raise ValueError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nValueError: a: b"
        )

    monkeypatch.setattr("dens_plugin.cli._dispatch", fail)
    assert refused(["train"], capsys) == "dens: error: a: b"


@pytest.mark.parametrize(
    ("option", "least"),
    [("--seeds=0", 1), ("--epochs=0", 1), ("--molecule-epochs=-1", 1), ("--systems=0", 1), ("--seed=-1", 0)],
)
def test_a_demo_of_nothing_is_refused_before_anything_is_made(option, least, tmp_path, capsys):
    name, value = option.split("=")
    told = refused(["demo", "--out", str(tmp_path / "demo"), option], capsys)
    assert told == f"dens: error: {name} must be a whole number of at least {least}, got {value}"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "command",
    [["synthetic", "out", "--seed=-1"], ["oc20", "raw", "out", "--workers=0"], ["check", "x", "--max-structures=-1"]],
)
def test_numbers_of_nothing_name_their_option(command, capsys):
    option = command[-1].split("=")[0]
    assert refused(["data", *command], capsys).startswith(f"dens: error: {option} must be a whole number of at least ")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("train", "validate", "predict", "relax", "data", "convert", "report", "demo"))
