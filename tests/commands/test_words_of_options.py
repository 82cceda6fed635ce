"""Options of fairchem's modes."""

from __future__ import annotations

import pytest

from dens_plugin.checks.options import as_python


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--optim.pad=true", "--optim.pad=True"),
        ("--model.backbone.use_pbc=False", "--model.backbone.use_pbc=False"),
        ("--optim.batch_size=null", "--optim.batch_size=None"),
        ("--dataset.val.src=data/true=null", "--dataset.val.src=data/true=null"),
        ("--optim.pad", "--optim.pad"),
        ("--task.warm_start.new_heads=[energy]", "--task.warm_start.new_heads=['energy']"),
        ("--task.warm_start={path: null}", "--task.warm_start={'path': None}"),
        ("--model.heads={energy: {module: a.B}}", "--model.heads={'energy': {'module': 'a.B'}}"),
        ("--optim.betas=[0.9, 1e-3]", "--optim.betas=[0.9, 1e-3]"),
        ("--optim.betas={'lr': 1e-3}", "--optim.betas={'lr': 1e-3}"),
        ("--dataset.train.src=['a b', c]", "--dataset.train.src=['a b', 'c']"),
        ("--dataset.train.pattern=[ab]*.extxyz", "--dataset.train.pattern=[ab]*.extxyz"),
        ("--x.since=[2020-01-01]", "--x.since=[2020-01-01]"),
        ("--x.y=[a", "--x.y=[a"),
    ],
)
def test_words_of_yaml_are_read(given, read):
    assert as_python(given) == read
