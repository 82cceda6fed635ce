"""Data sets of files that ASE reads, as for pre-training: the folder and the names are looked at."""

from __future__ import annotations

import pytest

from dens_plugin.checks.dataset import require_files, with_train_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "nope.extxyz"}, r"dataset.val.pattern: no file of '.*' is called 'nope.extxyz'; set it"),
        ({"pattern": "/nope"}, r"dataset.val.pattern '/nope' is none of file names"),
        (
            {"src": "a.xyz"},
            r"dataset.val.src: .* takes a folder: set dataset.val.src to '.*' and .*pattern",
        ),
    ],
)
def test_a_folder_of_files_for_ase(tmp_path, changes, message):
    """With what a split takes over from that of training; a pattern that is found is taken."""
    (tmp_path / "a.xyz").touch()
    train = {"format": "ase_read_multi", "src": str(tmp_path), "pattern": "*.xyz"}
    require_files(with_train_settings({"src": str(tmp_path)}, train), "val")
    bad = changes | {"src": str(tmp_path / changes.get("src", "."))}
    with pytest.raises(ValueError, match=message):
        require_files(with_train_settings(bad, train), "val")
    alone = {"src": str(tmp_path), "use_train_settings": False}
    assert with_train_settings(alone, train) == alone
