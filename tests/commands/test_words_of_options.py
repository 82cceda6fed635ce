"""Options of fairchem's modes."""

from __future__ import annotations

import pytest

from dens_plugin.commands.options import as_python


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--optim.pad=true", "--optim.pad=True"),
        ("--model.backbone.use_pbc=False", "--model.backbone.use_pbc=False"),
        ("--optim.batch_size=null", "--optim.batch_size=None"),
        ("--dataset.val.src=data/true=null", "--dataset.val.src=data/true=null"),
        ("--optim.pad", "--optim.pad"),
    ],
)
def test_words_of_yaml_are_read(given, read):
    assert as_python(given) == read
