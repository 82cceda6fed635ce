"""The path of docs/pretraining.md, from files without labels to a fine-tuned model."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import ase.build
import ase.io
import pytest
from experiments import model_of, read

import dens_plugin.training.trainer  # noqa: F401  (registers names)
from dens_plugin.checks.names import require_known_names
from dens_plugin.checks.objective import objective_from_config
from dens_plugin.checks.preflight import require_model
from dens_plugin.checks.schema import require_known_keys
from dens_plugin.cli import main

GUIDE = (Path(__file__).resolve().parent.parent / "docs" / "pretraining.md").read_text()
CONFIGS = {re.match(r"# (\S+)", text)[1]: text for text in re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)}
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)
    for line in block.splitlines()
]
UNLABELLED = re.compile(r"\{format: lmdb[^}]*\} +# or (\{.*\})")  # what a comment says for files without labels
SHORT = ("--optim.max_epochs=1", "--optim.batch_size=4", "--optim.eval_every=2", "--print-every=1")
FEW = ("--dataset.train.sample_n=8", "--dataset.val.sample_n=4")
MORE = {"data": ("--quiet",), "pretrain": (*SHORT, *FEW), "train": (*SHORT, *FEW)}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build(workplace, name):
    config = read(workplace / name)
    require_known_keys(config)
    require_known_names(config)
    require_model(model_of(config), objective_from_config(config))


def test_both_configs_have_one_backbone(workplace):
    first, second = (read(workplace / name)["model"]["backbone"] for name in CONFIGS)
    assert first == second


def test_commands_are_those_of_the_path():
    assert [" ".join(command[:2]) for command in COMMANDS] == [
        "dens data",
        "dens pretrain",
        "cp runs/checkpoints/*-pre/best_checkpoint.pt",
        "dens data",
        "dens train",
        "dens report",
    ]


@pytest.mark.slow
def test_path(workplace, caplog):
    """Every command but the report as the page has it, only shorter."""
    caplog.set_level("INFO")
    for program, *arguments in COMMANDS[:-1]:
        if program == "cp":
            (weights,) = workplace.glob(arguments[0])
            shutil.copy(weights, arguments[1])
        else:
            main([*arguments, *MORE[arguments[0]]])
    assert "took backbone; drew anew head energy; left out of the checkpoint head noise" in caplog.text
    assert list(workplace.glob("runs/checkpoints/*-fine/best_checkpoint.pt"))


@pytest.mark.slow
def test_structures_without_labels(workplace):
    """The data sets that the config's comments name."""
    text = CONFIGS["pretrain.yml"]
    assert len(UNLABELLED.findall(text)) == 2
    (workplace / "pretrain.yml").write_text(UNLABELLED.sub(r"\1", text))
    (workplace / "structures").mkdir()
    for name, count in (("train", 8), ("val", 4)):
        frames = [ase.build.molecule("CH3CH2OH") for _ in range(count)]
        for seed, atoms in enumerate(frames):
            atoms.rattle(0.1, seed=seed)
            atoms.set_cell([20.0, 20.0, 20.0])
        ase.io.write(workplace / "structures" / f"{name}.extxyz", frames)
    (command,) = [arguments for _, *arguments in COMMANDS if arguments[0] == "pretrain"]
    main([*command, *SHORT])
    assert list(workplace.glob("runs/checkpoints/*-pre/best_checkpoint.pt"))
