"""Networks of this package under bf16 autocast (`optim.autocast: bf16`), which mixes types within a sum over edges."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.models.base import HydraModel

from dens_plugin.compat import prepare_host
from dens_plugin.testing import random_structure

NETWORKS = {
    "PaiNNDeNS": ({"hidden_channels": 8, "num_rbf": 8}, "PaiNNGradientHead"),
    "EGNNDeNS": ({"channels": 8}, "EGNNGradientHead"),
    "SE3TransformerDeNS": ({"channels": 8, "num_degrees": 2}, "SE3TransformerGradientHead"),
    "TorchMDETDeNS": ({"embedding_dimension": 8, "num_heads": 2, "num_rbf": 8}, "TorchMDETGradientHead"),
    "SchNet": (
        {"hidden_channels": 8, "num_filters": 8, "num_gaussians": 8, "num_interactions": 1},
        "SchNetGradientHead",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_near_float32(name):
    prepare_host()
    setup_imports()
    settings, head = NETWORKS[name]
    layers = {} if name == "SchNet" else {"num_layers": 1}
    torch.manual_seed(0)
    model = HydraModel(
        backbone={"model": f"dens_plugin.{name}", "cutoff": 4.0, **layers, **settings},
        heads={"energy": {"module": f"dens_plugin.{head}"}},
        pass_through_head_outputs=True,
        otf_graph=True,
    )
    batch = data_list_collater([random_structure(5, seed=index, sid=index) for index in range(2)], otf_graph=True)
    exact = model(batch.clone())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch.clone())
    sum(value.float().sum() for value in found.values()).backward()
    assert set(found) == {"energy", "forces"}
    for key in found:
        assert torch.allclose(
            found[key].float(), exact[key], rtol=0.1, atol=0.05 * float(exact[key].detach().abs().max())
        )
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
