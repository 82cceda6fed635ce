"""The networks that a benchmark compares, their common loss, and the check that they compute the same.

| name | network | its training batch |
|---|---|---|
| ``plain`` | fairchem's with an energy and a force head | clean structures |
| ``fairchem_dens`` | fairchem's own DeNS, of EquiformerV2 | the corrupted structures of ``ours``, in its own fields |
| ``ours_host`` | this package's heads on fairchem's layers, ``fast: false``, of EquiformerV2 | corrupted structures |
| ``ours`` | this package's, ``fast: true`` | corrupted structures |

All have the same hyper-parameters (`sizes`) and the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.loss import L2NormLoss, MAELoss
from modes import Mode, Pairing, pairing
from sizes import Settings
from structures import OBJECTIVE, Sample
from torch import nn
from torch_geometric.data import Batch

from dens_plugin import FlatEquiformerV2DeNS, FlatESCNDeNS
from dens_plugin.backbones.key_map import to_plain_keys, to_plugin_keys
from dens_plugin.backbones.neighbours import with_neighbours
from dens_plugin.fields import NOISE, corruption_of, rows_of
from dens_plugin.objectives.base import Outputs
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.objectives.s2ef import S2EF
from dens_plugin.training.loading import loader_search
from dens_plugin.training.losses import term, total_loss
from dens_plugin.training.optimizer import with_fused_step

_FAIRCHEM_DENS = "fairchem.core.models.equiformer_v2.equiformer_v2_dens"
_BIAS, _INDEX = "backbone.force_embedding.bias", "backbone.force_embedding.expand_index"
_ADAMW = {"lr": 2e-4, "weight_decay": 1e-3}
_LOSSES = {"energy": (2.0, MAELoss()), "forces": (100.0, L2NormLoss()), NOISE: (OBJECTIVE.coefficient, L2NormLoss())}

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Contestant:
    """One way of training.

    Attributes:
        build: from hyper-parameters and the ``precision`` of our backbone to the network.
        training_batch: from a sample to what the network is trained on.
        load: write the weights of ``ours`` into the network.
        optimizer_params: of AdamW, as the trainer completes them for the network.
        loaded: a training batch as the network's loader gives it.
    """

    build: Callable[[Settings, str], nn.Module]
    training_batch: Callable[[Sample], Batch]
    load: Callable[[nn.Module, State], Any]
    optimizer_params: Callable[[nn.Module], dict[str, Any]]
    loaded: Callable[[nn.Module, Batch], Batch] = lambda _network, batch: batch


def build_all(
    model: str, settings: Settings, device: str, pair: Pairing | None = None, *, names: Sequence[str] | None = None
) -> dict[str, nn.Module]:
    """Contestants for a model, with the same weights; by default all, in float32.

    Args:
        model: of `CONTESTANTS`.
        settings: hyper-parameters of the backbone.
        device: where they shall be.
        pair: how they run.
        names: only these, ``ours`` among them.
    """
    pair, names = pair or pairing("fp32", device), names or list(CONTESTANTS[model])
    networks = {name: build_one(model, name, settings, device, pair.mode(name).key) for name in names}
    weights = copy.deepcopy(networks["ours"].state_dict())
    for name, network in networks.items():
        CONTESTANTS[model][name].load(network, weights)
    return networks


def build_one(model: str, name: str, settings: Settings, device: str, key: str) -> nn.Module:
    """One contestant, with weights of its own."""
    return CONTESTANTS[model][name].build(settings, key).to(device)


def loss(outputs: Outputs, batch: Batch) -> torch.Tensor:
    """Energy MAE, and L2 norms of force and noise errors, each over the rows that the batch's objective counts.

    A network without an output for the noise has it among its forces, as fairchem's DeNS head does. Outputs under
    autocast are widened first.
    """
    rows = rows_of(batch)
    targets = {"energy": batch.energy, "forces": batch.forces}
    if NOISE in rows:
        targets |= OBJECTIVE.targets(batch)
    natoms = {"energy": batch.natoms, "forces": batch.natoms[batch.batch], NOISE: batch.natoms[batch.batch]}
    return total_loss(
        [
            term(
                *_LOSSES[name],
                prediction=_widened(outputs.get(name, outputs["forces"])),
                target=targets[name],
                rows=rows[name],
                natoms=natoms[name],
            )
            for name in rows
        ]
    ).value


@torch.no_grad()
def require_equal(
    model: str, networks: Mapping[str, nn.Module], sample: Sample, pair: Pairing | None = None, seed: int = 0
) -> dict[str, float]:
    """Compare all networks on a clean batch and those with DeNS on a corrupted one.

    Args:
        model: the model whose contestants they are.
        networks: contestants' names and networks, with the same weights.
        sample: one with corrupted atoms.
        pair: how they run; in float32 by default.
        seed: of the edge frames, which are random and set anew before each forward.

    Returns:
        What was compared -> the largest difference relative to the largest value.

    Raises:
        RuntimeError: if a difference exceeds the tolerance of ``pair``.
    """
    pair = pair or pairing("fp32", "cpu")
    errors = {}
    for batch_name, other in [("clean", name) for name in networks] + [("corrupted", name) for name in _WITH_DENS]:
        if other == "ours" or other not in networks:
            continue
        ours, theirs = (
            _counted(
                networks[name], _evaluation_batch(CONTESTANTS[model][name], sample, batch_name), pair.mode(name), seed
            )
            for name in ("ours", other)
        )
        for output in theirs:
            errors[f"{batch_name} {output}, ours and {other}"] = _difference(ours[output], theirs[output])
    wrong = {what: error for what, error in errors.items() if not error <= pair.tolerance}
    if wrong:
        raise RuntimeError(
            f"the contestants do not compute the same (allowed are {pair.tolerance:g}, relative): {wrong}"
        )
    return errors


def _widened(output: torch.Tensor) -> torch.Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _evaluation_batch(contestant: Contestant, sample: Sample, batch_name: str) -> Batch:
    return sample.clean if batch_name == "clean" else contestant.training_batch(sample)


def _counted(network: nn.Module, batch: Batch, mode: Mode, seed: int) -> Outputs:
    """Outputs of an evaluation, of a corrupted batch only the rows that enter a loss."""
    torch.manual_seed(seed)
    with mode.products(), mode.autocast():
        outputs = network.eval()(batch)
    if not rows_of(batch):
        return {"energy": outputs["energy"], "forces": outputs["forces"]}
    return {name: outputs.get(name, outputs["forces"])[rows.mask] for name, rows in rows_of(batch).items()}


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _plain_equiformer_v2(settings: Settings, _key: str) -> nn.Module:
    heads = {"energy": {"module": "equiformerV2_scalar_head"}, "forces": {"module": "equiformerV2_vector_head"}}
    return _hydra("equiformer_v2_backbone", heads, settings)


def _plain_escn(settings: Settings, _key: str) -> nn.Module:
    heads = {"energy": {"module": "escn_energy_head"}, "forces": {"module": "escn_force_head"}}
    return _hydra("escn_backbone", heads, settings)


def _fairchem_dens_model(settings: Settings, _key: str) -> nn.Module:
    heads = {
        "energy": {"module": f"{_FAIRCHEM_DENS}.DeNSScalarHead"},
        "forces": {"module": f"{_FAIRCHEM_DENS}.DeNSVectorHead"},
    }
    return _hydra(f"{_FAIRCHEM_DENS}.EqV2DeNSBackbone", heads, settings)


def _hydra(backbone: str, heads: dict[str, Any], settings: Settings) -> nn.Module:
    return HydraModel(backbone={"model": backbone, **settings}, heads=heads, pass_through_head_outputs=True)


def _our_host_equiformer_v2(settings: Settings, _key: str) -> nn.Module:
    return FlatEquiformerV2DeNS(**settings, fast=False)


def _our_equiformer_v2(settings: Settings, key: str) -> nn.Module:
    return FlatEquiformerV2DeNS(**settings, fast=True, precision=key)


def _our_escn(settings: Settings, _key: str) -> nn.Module:
    return FlatESCNDeNS(**settings)


def _plain_batch(sample: Sample) -> Batch:
    return S2EF().prepare(sample.clean, StructureRandom(seed=0, epoch=0))  # whose randomness S2EF does not use


def _fairchem_dens_batch(sample: Sample) -> Batch:
    """The corrupted batch of ``ours``, with the fields that fairchem's DeNS reads beside its original forces."""
    batch = copy.copy(sample.corrupted)
    batch.denoising_pos_forward = True
    batch.noise_mask = corruption_of(batch).mask
    return batch


def _our_batch(sample: Sample) -> Batch:
    return sample.corrupted


def _load_plain(model: nn.Module, weights: State) -> None:
    model.load_state_dict(to_plain_keys(weights))


@torch.no_grad()
def _load_fairchem_dens(model: nn.Module, weights: State) -> None:
    """Read `to_plugin_keys` backwards: give the network's tensors our names, then write into them."""
    state = model.state_dict()  # shares its memory with the network
    state.pop(_BIAS).zero_()
    state.pop(_INDEX)
    named = to_plugin_keys(state)
    if named.keys() != weights.keys():
        raise RuntimeError(f"parameters without a counterpart: {sorted(named.keys() ^ weights.keys())}")
    for name, tensor in named.items():
        tensor.copy_(weights[name])


def _hosts_adamw(_network: nn.Module) -> dict[str, Any]:
    return dict(_ADAMW)


def _our_adamw(network: nn.Module) -> dict[str, Any]:
    completed: dict[str, Any] = with_fused_step({"optimizer_params": _ADAMW}, network.parameters())["optimizer_params"]
    return completed


def _with_neighbours(network: nn.Module, batch: Batch) -> Batch:
    """As our loaders' workers find them, on a CPU; the network reads them from then on."""
    search = loader_search(network, {"loader_graph": True})
    assert search is not None, "these networks read records"
    return with_neighbours(batch.clone().to("cpu"), search).to(batch.pos.device)


def _load_ours(model: nn.Module, weights: State) -> None:
    model.load_state_dict(weights)


_WITH_DENS = ("fairchem_dens", "ours_host")
CONTESTANTS = {
    "equiformer_v2": {
        "plain": Contestant(_plain_equiformer_v2, _plain_batch, _load_plain, _hosts_adamw),
        "fairchem_dens": Contestant(_fairchem_dens_model, _fairchem_dens_batch, _load_fairchem_dens, _hosts_adamw),
        "ours_host": Contestant(_our_host_equiformer_v2, _our_batch, _load_ours, _our_adamw),
        "ours": Contestant(_our_equiformer_v2, _our_batch, _load_ours, _our_adamw, _with_neighbours),
    },
    "escn": {
        "plain": Contestant(_plain_escn, _plain_batch, _load_plain, _hosts_adamw),
        "ours": Contestant(_our_escn, _our_batch, _load_ours, _our_adamw, _with_neighbours),
    },
}
