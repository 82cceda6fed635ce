"""How many kernels a training step launches on a GPU; the ceilings guard what was gained."""

from __future__ import annotations

import json

import pytest
import torch

CEILINGS = {  # of the 83M network; the number of channels does not matter
    ("equiformer_v2", "fp32"): 2292,
    ("equiformer_v2", "bf16"): 2401,
    ("escn", "fp32"): 3945,
}


@pytest.mark.parametrize(("model", "precision"), CEILINGS, ids="-".join)
def test_a_step_launches_no_more_than(load, capsys, model, precision):
    report = load("launches").main([f"--model={model}", f"--precision={precision}", "--channels=8", "--json"])
    assert json.loads(capsys.readouterr().out) == report
    assert report["total"] == sum(sum(counts) for counts in report["places"].values())
    assert 0 < report["triton"] < report["total"] <= CEILINGS[model, precision]


def test_what_counts(load):
    launches = load("launches")
    weight = torch.ones(3, 3, device="meta", requires_grad=True)
    counts = launches._Counts()
    with counts:
        out = torch.empty(2, 3, device="meta")[:1].view(3) @ weight  # memory, two views, a product
        out.detach().zero_()
    assert counts.places.total() == 2
    report = launches.summary(counts.places)
    assert report["operations"] == report["total"] == 2
    assert "2 launches" in launches.markdown(report, rows=0)
