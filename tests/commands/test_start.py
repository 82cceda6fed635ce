"""How a command starts: fast, with its own output, and after a look at the files it was given."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import yaml

import dens_plugin
import dens_plugin.commands.modes
from dens_plugin.cli import main
from dens_plugin.commands.modes import run_folder_of, run_mode
from dens_plugin.config_files import find_config, packaged_names

SECONDS = 2.0


def start(*arguments):
    """Output and seconds of a command in a process of its own, and whether it imported torch."""
    code = "import sys\nfrom dens_plugin.cli import main\ntry:\n main()\nfinally:\n print('torch' in sys.modules)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    return done.stdout, done.stderr, time.monotonic() - began


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("train", "--help"), ("--version",), ("configs",), ("train", "--config-yml", "none.yml")],
    ids=" ".join,
)
def test_answers_without_torch(arguments):
    output, errors, seconds = start(*arguments)
    assert output.splitlines()[-1] == "False", errors
    assert "Warning" not in errors
    assert seconds < 5 * SECONDS  # this machine may be busy


def test_version_names_what_matters():
    output, _, _ = start("--version")
    assert output.startswith(f"dens_plugin {dens_plugin.__version__} (fairchem-core 1.")
    assert "torch 2." in output


def test_fairchem_is_imported_without_warnings():
    code = "import dens_plugin; dens_plugin.DeNSTrainer; import warnings; warnings.warn('mine', FutureWarning)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch.load" not in done.stderr
    assert "mine" in done.stderr


class TestFilesAreLookedForFirst:
    def refused(self, tmp_path, monkeypatch, config, *arguments, command="train"):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
        with pytest.raises((ValueError, OSError)) as caught:
            run_mode(command, ["--config-yml", "c.yml", *arguments])
        return str(caught.value)

    def test_data(self, tmp_path, monkeypatch):
        config = {"dataset": {"train": {"src": "nowhere"}}}
        assert self.refused(tmp_path, monkeypatch, config).startswith("dataset.train.src: there is no 'nowhere'")

    def test_data_of_an_option(self, tmp_path, monkeypatch):
        config = {"dataset": {"train": {"src": "nowhere"}, "val": {"src": "."}}}
        line = self.refused(tmp_path, monkeypatch, config, "--dataset.train.src=there")
        assert line.startswith("dataset.train.src: there is no 'there'")

    def test_data_that_the_mode_does_not_read(self, tmp_path, monkeypatch):
        config = {"dataset": {"train": {"src": "nowhere"}, "val": {"src": "."}}}
        line = self.refused(tmp_path, monkeypatch, config, "--checkpoint", "none.pt", command="validate")
        assert line.startswith("no checkpoint at 'none.pt'")

    def test_included_file(self, tmp_path, monkeypatch):
        line = self.refused(tmp_path, monkeypatch, {"includes": ["bas.yml"]})
        assert line.startswith("there is no config file 'bas.yml', which c.yml includes")

    def test_cycle(self, tmp_path, monkeypatch):
        assert "includes itself" in self.refused(tmp_path, monkeypatch, {"includes": ["c.yml"]})

    def test_both_devices(self, tmp_path, monkeypatch):
        line = self.refused(tmp_path, monkeypatch, {"dataset": {}}, "--cpu", "--device", "cuda")
        assert "contradict each other" in line

    @pytest.mark.parametrize(
        ("objective", "arguments", "found"),
        [
            ({"objective": {"name": "s2ef"}}, (), "is `s2ef`"),
            ({"objective": {"name": "pretrain"}}, ("--task.objective.name=dens",), "is `dens`"),
            ({}, (), "is missing"),
        ],
    )
    def test_pretraining_with_another_objective(self, tmp_path, monkeypatch, objective, arguments, found):
        line = self.refused(tmp_path, monkeypatch, {"task": objective}, *arguments, command="pretrain")
        assert f"task.objective.name in 'c.yml' {found}; include objective/pretrain.yml" in line

    def test_pretraining_is_training(self, tmp_path, monkeypatch):
        """With the objective that it is named for, of an included file."""
        asked = []
        monkeypatch.setattr(dens_plugin.commands.modes.importlib, "import_module", lambda name: _Launch(asked))
        (tmp_path / "c.yml").write_text("includes: [objective/pretrain.yml]")
        run_mode("pretrain", ["--config-yml", str(tmp_path / "c.yml"), "--cpu"])
        assert asked == ["train"]


class _Launch:
    def __init__(self, asked):
        self.asked = asked

    def launch(self, args, overrides):
        self.asked.append(args.mode)


def test_results_go_where_the_checkpoint_came_from(tmp_path):
    assert run_folder_of(str(tmp_path / "runs/checkpoints/x/best_checkpoint.pt")) == tmp_path / "runs"
    assert run_folder_of("best.pt") is None


class TestConfigs:
    def test_lists_all_with_what_they_are_for(self, capsys):
        main(["configs"])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == packaged_names()
        assert all(len(line.split()) > 3 for line in lines)

    def test_prints_one(self, capsys):
        main(["configs", "objective/s2ef.yml"])
        assert "name: s2ef" in capsys.readouterr().out

    def test_finds_them_from_anywhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert find_config("configs/base.yml") == find_config("base.yml")
        with pytest.raises(FileNotFoundError, match=r"did you mean 'base.yml'\?"):
            find_config("bse.yml")


@pytest.mark.parametrize("source", [5, True, [5]])
def test_sources_that_are_no_paths_are_left_to_the_look_at_the_config(source, tmp_path):
    path = tmp_path / "a.yml"
    path.write_text(yaml.safe_dump({"dataset": {"train": {"src": source}, "val": {"src": "val"}}}))
    assert dens_plugin.commands.modes._sources(path) == {"train": [], "val": ["val"]}
