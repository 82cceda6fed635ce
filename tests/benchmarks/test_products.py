from __future__ import annotations

import json

import torch


def test_counts_every_kind_of_product(load):
    products = load("products")
    left, right, square = torch.randn(2, 3), torch.randn(3, 4), torch.randn(2, 4)
    assert products.operations(lambda: torch.mm(left, right)) == 2 * 2 * 3 * 4
    assert products.operations(lambda: square.addmm_(left, right)) == 2 * 2 * 3 * 4
    assert products.operations(lambda: torch.bmm(left.expand(5, 2, 3), right.expand(5, 3, 4))) == 5 * 2 * 2 * 3 * 4


def test_counts_of_all_contestants(load, tmp_path, capsys):
    path = load("products").main(["--layers=1", "--lmax=2", "--data=synthetic", "--threads=1", "--out", str(tmp_path)])
    report = json.loads(path.read_text())
    for counts in report["operations"].values():
        assert counts.keys() == {"plain", "fairchem_dens", "ours_host", "ours"}
        assert counts["ours"] < counts["ours_host"]
    assert path.with_suffix(".md").read_text().strip() in capsys.readouterr().out
