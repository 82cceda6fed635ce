"""Values of the authors' eSCN with DeNS; edge frames are drawn from the global state, as theirs."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch, Data

import dens_plugin
from dens_plugin.backbones.key_map import to_plugin_keys
from dens_plugin.fields import CORRUPTION, NOISE, ROWS, Corruption
from dens_plugin.testing import predict, rows_around

CASES = ["normal", "denoise_partial", "denoise_all"]


@pytest.fixture(scope="module")
def reference(golden):
    return golden("escn_dens_l4_allnbr.pt")


@pytest.fixture
def model(reference):
    settings = {key: value for key, value in reference["config"].items() if key != "use_force_encoding"}
    model = dens_plugin.FlatESCNDeNS(**settings).eval()
    model.load_state_dict(to_plugin_keys(reference["state_dict"]))
    return model


def noise_mask(inputs, case):
    mask = inputs["noise_mask"]
    return {"normal": torch.zeros_like(mask), "denoise_partial": mask, "denoise_all": torch.ones_like(mask)}[case]


def batch_of(reference, case):
    """The three structures of a case, with the authors' mask as it is: it covers fixed atoms too."""
    inputs, mask = reference["inputs"], noise_mask(reference["inputs"], case)
    sizes = inputs["natoms"].tolist()
    pos = inputs[case.replace("denoise", "pos")] if case != "normal" else inputs["pos"]
    columns = zip(pos.split(sizes), inputs["cell"], inputs["atomic_numbers"].split(sizes), sizes, strict=True)
    batch = Batch.from_data_list(
        [Data(pos=p, cell=cell[None], atomic_numbers=numbers, natoms=n) for p, cell, numbers, n in columns]
    )
    encoded = torch.where(mask[:, None], inputs["forces"], torch.zeros(()))
    batch[CORRUPTION] = Corruption(mask, pos - inputs["pos"], torch.full((3,), inputs["std"]), encoded)
    batch[ROWS] = rows_around(mask, batch)
    return batch, mask


def vectors(out, mask):
    """What the authors call forces: the noise prediction of corrupted atoms, the forces of the others."""
    return torch.where(mask[:, None], out[NOISE], out["forces"])


@pytest.mark.parametrize("case", CASES)
def test_outputs(reference, model, case):
    """To rounding: the folded bias and the shape of a matrix product differ from the authors' code."""
    batch, mask = batch_of(reference, case)
    out, expected = predict(model, batch), reference["outputs"][case]
    assert torch.allclose(out["energy"], expected["energy"].view(3), rtol=0, atol=1e-6)
    assert torch.allclose(vectors(out, mask), expected["forces"], rtol=0, atol=2e-6)


def test_inference(reference, model):
    """Without a record the forces of the clean structures are those of the authors' normal mode."""
    batch, _ = batch_of(reference, "normal")
    del batch[CORRUPTION], batch[ROWS]
    out, expected = predict(model, batch), reference["outputs"]["normal"]
    assert torch.allclose(out["energy"], expected["energy"].view(3), rtol=0, atol=1e-6)
    assert torch.allclose(out["forces"], expected["forces"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients(reference, model, case):
    """Norms of the gradients of the summed energies and squared vectors, of every parameter the authors have."""
    batch, mask = batch_of(reference, case)
    out = predict(model, batch)
    (out["energy"].sum() + vectors(out, mask).square().sum()).backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    norms = {name: torch.tensor(norm) for name, norm in reference["grad_norms"][case].items() if norm is not None}
    bias = norms.pop("force_embedding.bias")  # folded into the embedding: its gradient is the sum over all elements
    assert trained["backbone.sphere_embedding.weight"].grad.sum(dim=0).norm().item() == pytest.approx(bias.item(), 1e-4)
    expected = to_plugin_keys(norms)
    assert trained.keys() == expected.keys()
    for name, value in trained.items():
        assert value.grad.norm().item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-9), name
