"""Values of the authors' Equiformer (v1) with DeNS on ethanol, with the 3j symbols of another version of e3nn."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch, Data

from dens_plugin.backbones.equiformer.flat import FlatEquiformerDeNS
from dens_plugin.backbones.equiformer.keys import is_authors, to_plugin_keys
from dens_plugin.backbones.equiformer.settings import channels
from dens_plugin.fields import CORRUPTION, NOISE, ROWS, Corruption
from dens_plugin.testing import default_dtype, rows_around

CASES = ["normal", "denoise_mixed", "denoise_all"]


@pytest.fixture(scope="module")
def reference(golden):
    return golden("equiformer_md17_dens_l2.pt")


def model_of(reference):
    """In the default dtype."""
    model = FlatEquiformerDeNS(**reference["config"]).eval()
    state = to_plugin_keys(reference["state_dict"], widths(reference))
    model.load_state_dict({key: value.to(torch.get_default_dtype()) for key, value in state.items()})
    return model


def widths(reference):
    return channels(reference["config"]["irreps_node_embedding"], "irreps_node_embedding")


def batch_of(reference, case):
    """The three molecules of a case in the default dtype, and the mask of corrupted atoms."""
    inputs, dtype = reference["inputs"], torch.get_default_dtype()
    mixed = inputs["noise_mask_mixed"]
    mask = {"normal": torch.zeros_like(mixed), "denoise_mixed": mixed, "denoise_all": torch.ones_like(mixed)}[case]
    pos = inputs[case.replace("denoise", "pos") if case != "normal" else "pos"].to(dtype)
    columns = zip(pos.split(9), inputs["z"].split(9), strict=True)
    batch = Batch.from_data_list([Data(pos=p, atomic_numbers=z, natoms=9) for p, z in columns])
    encoded = torch.where(mask[:, None], inputs["dy"].to(dtype), torch.zeros((), dtype=dtype))
    batch[CORRUPTION] = Corruption(mask, pos - inputs["pos"], torch.full((3,), inputs["std"]), encoded)
    batch[ROWS] = rows_around(mask, batch)
    return batch, mask


def vectors(out, mask):
    """What the authors call dy: the noise prediction of corrupted atoms, the forces of the others."""
    return torch.where(mask[:, None], out[NOISE], out["forces"])


@pytest.mark.parametrize("case", CASES)
def test_outputs(reference, case):
    """In float32 to rounding."""
    batch, mask = batch_of(reference, case)
    out, expected = model_of(reference)(batch), reference["outputs"][case]
    assert torch.allclose(out["energy"], expected["energy"].view(3), rtol=0, atol=2e-6)
    assert torch.allclose(vectors(out, mask), expected["dy"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_outputs_in_float64(reference, case):
    """To 3e-8: the authors' constants were made in float32; here the radial bases are theirs, the 3j symbols exact."""
    with default_dtype(torch.float64):
        model = model_of(reference)
        basis = model.backbone.geometry.basis
        basis.means.copy_(reference["state_dict"]["rbf.means"])
        basis.beta = reference["state_dict"]["rbf.betas"][0].item()
        batch, mask = batch_of(reference, case)
        out, expected = model(batch), reference["outputs_float64"][case]
    assert torch.allclose(out["energy"], expected["energy"].view(3), rtol=0, atol=3e-8)
    assert torch.allclose(vectors(out, mask), expected["dy"], rtol=0, atol=3e-8)


@pytest.mark.parametrize("case", CASES)
def test_inference(reference, case):
    """Without a record, forces and energies of clean molecules are those of the authors' mixed batches."""
    batch, mask = batch_of(reference, case)
    clean = ~mask.view(3, 9).any(dim=1)
    del batch[CORRUPTION], batch[ROWS]
    with torch.no_grad():
        out = model_of(reference)(batch)
    expected = reference["outputs"][case]
    assert NOISE not in out
    assert torch.allclose(out["energy"][clean], expected["energy"].view(3)[clean], rtol=0, atol=2e-6)
    assert torch.allclose(out["forces"].view(3, 9, 3)[clean], expected["dy"].view(3, 9, 3)[clean], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients(reference, case):
    """Norms of the gradients of the summed energies and squared vectors, of every parameter the authors have."""
    batch, mask = batch_of(reference, case)
    model = model_of(reference)
    out = model(batch)
    (out["energy"].sum() + vectors(out, mask).square().sum()).backward()
    expected = expected_norms(reference, case)
    trained = dict(model.named_parameters())
    assert trained.keys() == expected.keys()
    for name, value in trained.items():
        assert value.grad.norm().item() == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name


def expected_norms(reference, case):
    """By our names: norms do not change with the order and the signs of a tensor's elements."""
    norms = reference["grad_norms"][case]
    assert norms["force_embed.bias.0"] == pytest.approx(norms["atom_embed.atom_type_lin.bias.0"])  # folded into it
    filled = {
        key: torch.full_like(value, norms.get(key) or 0.0)
        for key, value in reference["state_dict"].items()
        if key != "force_embed.bias.0"
    }
    return {name: value.abs().max().item() for name, value in to_plugin_keys(filled, widths(reference)).items()}


def test_weights_are_recognised(reference):
    """Theirs, also under DDP's prefix, and not ours."""
    state = reference["state_dict"]
    assert is_authors(state)
    assert is_authors({f"module.{key}": value for key, value in state.items()})
    ours = to_plugin_keys({f"module.{key}": value for key, value in state.items()}, widths(reference))
    assert not is_authors(ours)
    assert all(torch.equal(value, ours[key]) for key, value in to_plugin_keys(state, widths(reference)).items())
