"""Sizes and figures of the rows of NDeM's and denoise pre-training's tables."""

from __future__ import annotations

import re

import pytest
from experiments import CONFIGS, model_of, read

import dens_plugin.training.trainer  # noqa: F401  (registers names)
from dens_plugin.checks.objective import objective_from_config
from dens_plugin.cluster.sweeps import read_entries
from dens_plugin.report.relatives import PAPER

MD17 = CONFIGS / "experiment" / "ndem_md17"


def parameters(path):
    """In the backbone, and in each head."""
    model = model_of(read(path))
    count = lambda module: sum(p.numel() for p in module.parameters() if p.requires_grad)  # noqa: E731
    return count(model.backbone), {name: count(head) for name, head in model.output_heads.items()}


def test_equiformer_v2():
    """Table 3 has 153M without NDeM, as we have, and 157M with it: its auxiliary head, not described, is smaller."""
    backbone, heads = parameters(CONFIGS / "experiment" / "ndem_oc20" / "equiformer_v2_ndem_energy4.yml")
    plain = backbone + heads["energy"] + heads["forces"]
    assert abs(plain / 1e6 - 153) < 0.65
    assert heads["auxiliary_forces"] == heads["forces"]
    assert (plain + heads["auxiliary_forces"]) / 1e6 == pytest.approx(160.5, abs=0.05)


def test_torchmd_et_on_md17():
    backbone, heads = parameters(MD17 / "torchmd_et_ndem.yml")
    assert backbone + heads["energy"] == 1_339_906


def test_schnet():
    """As in denoise pre-training, by the authors' code."""
    backbone, heads = parameters(CONFIGS / "experiment" / "denoise_pretrain" / "schnet_scratch.yml")
    assert backbone + heads["energy"] == 1_415_425


def egnn_of_the_authors(channels, layers, kinds):
    """By the shapes of its program's weights."""
    square = channels * channels + channels
    messages = (2 * channels + 1) * channels + channels + square + channels + 1
    nodes = 2 * channels * channels + channels + square
    return kinds * channels + layers * (messages + nodes + square + channels) + square + channels + 1


def test_egnn():
    """The authors' program, whose embedding has 28 rows where ours has 60, and whose heads are in one network."""
    folder = CONFIGS / "experiment" / "denoise_pretrain"
    backbone, heads = parameters(folder / "egnn_1_pretrain.yml")
    assert parameters(folder / "egnn_2_finetune.yml")[0] == parameters(folder / "egnn_scratch.yml")[0] == backbone
    energy = parameters(folder / "egnn_scratch.yml")[1]["energy"]
    assert backbone - 32 * 256 + heads["noise"] + energy == egnn_of_the_authors(256, 5, 28)


FILES = sorted((CONFIGS / "experiment" / "denoise_pretrain").glob("*.yml"))
TITLES = {"schnet": "SchNet", "se3_transformer": "SE(3)-Transformer", "egnn": "EGNN", "torchmd_et": "TorchMD-Net"}


@pytest.mark.parametrize("path", [path for path in FILES if "1_pretrain" not in path.name], ids=lambda p: p.stem)
def test_comments_of_pretraining_are_the_tables_figures(path):
    network, way = re.fullmatch(r"(\w+?)_(2_finetune|scratch)", path.stem).groups()
    row = dict(PAPER["pretrain-table2"].rows)[TITLES[network] + (", pre-trained" if way == "2_finetune" else "")]
    assert re.search(r"RMSE ([\d.]+), MAE ([\d.]+) kcal/mol", path.read_text()).groups() == row[2:]
    assert ("new_heads: [energy]" in path.read_text()) == (way == "2_finetune")


def test_comments_of_qm9_are_the_tables_figures():
    table = PAPER["ndem-table2"]
    figures = dict(zip(table.keys, dict(table.rows)["NDeM"], strict=True))
    for name, figure in figures.items():
        path = CONFIGS / "experiment" / "ndem_qm9" / f"torchmd_et_ndem_{name}.yml"
        assert f"The paper: {figure} " in path.read_text()
        assert [label.name for label in objective_from_config(read(path)).labels] == [name]


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("ndem_table1", [*dict(PAPER["ndem-table1"].rows)["TorchMD-NET"], *dict(PAPER["ndem-table1"].rows)["NDeM"]]),
        ("ndem_tables4_5", [cell for name in ("ndem-table4", "ndem-table5") for _, (cell,) in PAPER[name].rows]),
        ("ndem_table6", [cell for _, (cell,) in PAPER["ndem-table6"].rows[:4]]),
    ],
)
def test_sweeps_are_the_tables_row_by_row(sweep, expected):
    path = CONFIGS / "sweep" / f"{sweep}.yml"
    assert re.findall(r"# the paper: ([\d.]+) kcal", path.read_text()) == expected
    assert len(read_entries([path])) == len(expected)


def test_sweep_of_pretraining_is_table_2():
    path = CONFIGS / "sweep" / "pretrain_table2.yml"
    figures = re.findall(r"(\w+)_(?:2_finetune|scratch)\.yml  # the paper: ([\d.]+), ([\d.]+)", path.read_text())
    rows = dict(PAPER["pretrain-table2"].rows)
    networks = list(dict.fromkeys(network for network, *_ in figures))
    expected = [
        (network, *rows[TITLES[network] + suffix][at : at + 2])
        for network in networks
        for at in (0, 2)
        for suffix in ("", ", pre-trained")
    ]
    assert figures == expected
    for entry in read_entries([path]):
        assert ("task.warm_start.path" in dict(entry.changes)) == entry.name.endswith("_pretrained")
