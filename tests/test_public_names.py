"""What `dens_plugin` offers by name, without a list that a new backbone or objective would have to edit."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import dens_plugin


@pytest.mark.parametrize("name", dens_plugin.__all__)
def test_every_name_is_there(name):
    assert getattr(dens_plugin, name)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="it offers __version__, DeNSTrainer, "):
        _ = dens_plugin.EquiformerV3


def test_names_are_those_of_folders_and_files(tmp_path, monkeypatch):
    (tmp_path / "backbones" / "mine").mkdir(parents=True)
    (tmp_path / "objectives").mkdir()
    (tmp_path / "backbones" / "__init__.py").write_text('__all__ = ["Nobody"]\n')
    (tmp_path / "backbones" / "mine" / "__init__.py").write_text('__all__ = [\n    "Mine",\n    "MyHead",\n]\n')
    (tmp_path / "objectives" / "ours.py").write_text('__all__ = ["Ours"]\n')
    monkeypatch.setattr(dens_plugin, "__file__", str(tmp_path / "__init__.py"))
    found = dens_plugin._homes.__wrapped__()
    assert found["Mine"] == found["MyHead"] == "dens_plugin.backbones.mine"
    assert found["Ours"] == "dens_plugin.objectives.ours"
    assert "Nobody" not in found


def test_names_are_known_without_torch():
    code = "import sys, dens_plugin; assert 'ESENDeNS' in dens_plugin.__all__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["equiformer_v2", "escn", "esen", "equiformer", "painn"])
def test_a_backbone_is_a_folder(name):
    folder = importlib.import_module(f"dens_plugin.backbones.{name}")
    assert folder.__all__ == sorted(folder.__all__)
    assert all(getattr(dens_plugin, each) is getattr(folder, each) for each in folder.__all__)
