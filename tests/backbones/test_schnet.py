from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch, Data

import dens_plugin.backbones.gradients
import dens_plugin.backbones.schnet  # noqa: F401  (both register names)
from dens_plugin.backbones.family import family_of, unwrapped
from dens_plugin.backbones.schnet.keys import to_plugin_keys
from dens_plugin.checks.preflight import require_model
from dens_plugin.compat import load_checkpoint
from dens_plugin.convert.conversion import convert
from dens_plugin.objectives.dens import DeNS
from dens_plugin.objectives.pretrain import DenoisePretraining
from dens_plugin.testing import EPOCH, assert_close, default_dtype, predict, random_batch, rotated

GOLDEN = Path(__file__).resolve().parents[3] / "shared/golden/relatives"
SMALL = {"hidden_channels": 8, "num_filters": 8, "num_interactions": 2, "num_gaussians": 8, "cutoff": 4.0}
HEADS = {"energy": {"module": "schnet_gradient_head"}}


def ours(heads=HEADS, **changes):
    torch.manual_seed(0)
    return HydraModel(
        backbone={"model": "schnet_plugin_backbone", **SMALL, **changes}, heads=heads, pass_through_head_outputs=True
    )


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden values are not here")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
@pytest.mark.parametrize("case", ["pyg_schnet_seed11", "pyg_schnet_mean_seed12", "fairchem_schnet_seed81"])
def test_golden_values(case, dtype, tolerance):
    """Energies, forces, and norms of all parameters' gradients; they keep their Gaussians' means in float32."""
    golden = torch.load(GOLDEN / f"{case}.pt", weights_only=True)
    config, expected = golden["config"], golden[str(dtype).removeprefix("torch.")]
    with default_dtype(dtype):
        readout = "mean" if config.get("readout") == "mean" else "sum"
        heads = {"energy": HEADS["energy"] | {"readout": readout}}
        model = ours(heads, **{name: config[name] for name in SMALL})
        model.load_state_dict(to_plugin_keys(golden["state_dict"]))
        inputs, weights = golden["inputs"], golden["loss_weights"]
        batch = Batch.from_data_list(list(molecules(inputs["z"], inputs["pos"].to(dtype), inputs["batch"])))
        out = predict(model, batch)
        sum((weights[f"w_{name}"].to(dtype) * value).sum() for name, value in out.items()).backward()
    for name in ("energy", "forces"):
        assert_close(out[name], expected[name], tolerance)
    norms = {name: torch.tensor(value, dtype=dtype) for name, value in expected["grad_norms"].items()}
    for name, norm in to_plugin_keys(norms).items():
        found = model.get_parameter(name).grad.norm().item()
        assert found == pytest.approx(norm.item(), rel=50 * tolerance, abs=50 * tolerance), name


def _checkpoint(path, **changes):
    """fairchem's, as its trainer saves it."""
    golden = torch.load(GOLDEN / "fairchem_schnet_seed81.pt", weights_only=True)
    state = {f"module.{name}": value for name, value in golden["state_dict"].items()}
    config = {"model": {"name": "schnet", **golden["config"], **changes}, "task": {}, "optim": {}, "dataset": {}}
    torch.save({"state_dict": state, "config": config, "normalizers": {}}, path)
    return golden


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden values are not here")
def test_fairchems_checkpoint_converts(tmp_path):
    golden = _checkpoint(tmp_path / "fairchems.pt")
    converted = load_checkpoint(convert(tmp_path / "fairchems.pt", tmp_path / "ours.pt"))
    settings = dict(converted["config"]["model"])
    model = registry.get_model_class(settings.pop("name"))(**settings)
    model.load_state_dict(unwrapped(converted["state_dict"]))
    inputs = golden["inputs"]
    batch = Batch.from_data_list(list(molecules(inputs["z"], inputs["pos"].float(), inputs["batch"])))
    out = predict(model, batch)
    for name in ("energy", "forces"):
        assert_close(out[name], golden["float32"][name], 1e-4)


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden values are not here")
def test_conversions_that_would_lose_something_are_refused(tmp_path):
    _checkpoint(tmp_path / "fairchems.pt", readout="mean")
    with pytest.raises(ValueError, match="readout 'mean'"):
        convert(tmp_path / "fairchems.pt", tmp_path / "ours.pt")
    with pytest.raises(ValueError, match="no SchNet to convert to"):
        convert(tmp_path / "fairchems.pt", tmp_path / "ours.pt", to="plain")


def test_energies_of_mean_and_sum():
    batch = random_batch()
    heads = {"energy": HEADS["energy"] | {"readout": "mean"}}
    whole, mean = predict(ours(), batch), predict(ours(heads), batch)
    assert_close(mean["energy"] * batch.natoms, whole["energy"], 1e-5)
    assert_close(mean["forces"] * batch.natoms[batch.batch, None], whole["forces"], 1e-5)
    with pytest.raises(ValueError, match="unknown readout 'max'"):
        ours({"energy": HEADS["energy"] | {"readout": "max"}})


def test_learns_noise_as_a_gradient():
    """As in denoise pre-training, with a readout of its own; weights of a family that warm starts know."""
    model = ours({"noise": {"module": "gradient_noise_head"}})
    batch = DenoisePretraining(sigma=0.1).prepare(random_batch(), EPOCH)
    noise = model(batch)["noise"]
    assert noise.shape == batch.pos.shape
    noise.square().sum().backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in model.parameters())
    assert family_of(model.state_dict(), "ours").title == "SchNet"


def molecules(numbers, pos, batch):
    for index in range(int(batch.max()) + 1):
        chosen = batch == index
        yield Data(atomic_numbers=numbers[chosen], pos=pos[chosen], natoms=int(chosen.sum()))


def test_dens_is_refused():
    """Scalars can hold no vector."""
    model = ours(HEADS | {"noise": {"module": "gradient_noise_head"}})
    with pytest.raises(ValueError, match="encodes forces"):
        require_model(model, DeNS())


def test_is_equivariant():
    batch, rotation = random_batch(), torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    plain, turned = predict(ours(), batch), predict(ours(), rotated(batch, rotation))
    assert_close(turned["energy"], plain["energy"], 1e-5)
    assert_close(turned["forces"], plain["forces"] @ rotation.T, 1e-4)


def test_atoms_without_neighbours():
    out = predict(ours(), random_batch((1, 1)))
    assert torch.isfinite(out["energy"]).all()
    assert not out["forces"].any()
