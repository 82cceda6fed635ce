"""A GPU's path from batch to gradients on a CPU: its order of operations, with twins of Triton's kernels.

Tensors say that they are on a GPU, so that everything is computed as there but for the kernels themselves, which have
tests of their own (`tests/nn/backends/triton`).
"""

from __future__ import annotations

import kernel_twins
import pytest
import torch
from padded import loaded, roomy, step_of
from test_equiformer_v2_fast import both
from test_escn_fast import LONE_ATOMS
from test_escn_fast import both as escn_both
from two_paths import a_corrupted_batch, assert_same_step, step

from dens_plugin.nn.backends.cpu import team
from dens_plugin.nn.backends.triton import availability
from dens_plugin.objectives.dens import DeNS
from dens_plugin.padding.pad import pad

OPTIONS = {
    "paper": {},
    "shared radial, shared embeddings, RMS norm": {
        "use_m_share_rad": True,
        "share_atom_edge_embedding": True,
        "norm_type": "rms_norm_sh",
    },
    "no element embeddings": {"use_atom_edge_embedding": False},
    "grid activation": {"use_grid_mlp": False},
    "not separable": {"use_sep_s2_act": False},
    "gates": {"use_gate_act": True, "use_grid_mlp": False},
    "order zero": {"mmax_list": [0]},
    "checkpointed": {"activation_checkpoint": True},
    "no dropout": {"alpha_drop": 0.0, "drop_path_rate": 0.0, "proj_drop": 0.0},
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """For what is computed from its call on."""

    def become():
        monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        monkeypatch.setattr(availability, "triton_reason", lambda *_: None)
        monkeypatch.setattr(team, "loops_reason", lambda: "a GPU has none")
        kernel_twins.stand_in(monkeypatch)

    return become


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_equiformer_v2_gives_fairchems_numbers(changes, as_on_a_gpu):
    host, fast = both(**changes)
    batch = a_corrupted_batch()
    expected = step(host, batch)
    as_on_a_gpu()
    assert_same_step(step(fast, batch), expected, outputs=1e-5, gradients=1e-4)


def test_escn_gives_fairchems_numbers(as_on_a_gpu):
    host, fast = escn_both()
    batch = a_corrupted_batch()
    expected = step(host, batch)
    as_on_a_gpu()
    assert_same_step(step(fast, batch), expected, outputs=1e-5, gradients=1e-4, rounding=LONE_ATOMS)


@pytest.mark.parametrize("make", [lambda: both(**OPTIONS["no dropout"]), escn_both], ids=["equiformer_v2", "escn"])
def test_padded_batches_give_the_numbers_of_batches(make, as_on_a_gpu):
    """Some rows and edges are listed several times there."""
    _, model = make()
    objective = DeNS(prob=0.7)
    batch = loaded(model, objective, dtype=torch.float32)
    padded = pad(batch, roomy(batch, rows=20, incoming=90))
    as_on_a_gpu()
    (outputs, loss, gradients), known = (step_of(model.train(), objective, each) for each in (padded, batch))
    for name, value in known[0].items():
        assert (outputs[name][: len(value)] - value).abs().max() <= 1e-5 * max(1.0, value.abs().max().item()), name
    assert loss.value.item() == pytest.approx(known[1].value.item(), rel=1e-5)
    scale = max(value.abs().max() for value in known[2].values())
    for name, value in known[2].items():
        assert (gradients[name] - value).abs().max() <= 1e-4 * scale, name
