"""Small networks, prepared batches and their losses, for tests of padding."""

from __future__ import annotations

import copy

import fairchem.core.modules.loss  # noqa: F401  (registers losses)
import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from samples import MODEL

import dens_plugin
import dens_plugin.backbones.egnn
import dens_plugin.backbones.equiformer
import dens_plugin.backbones.gradients
import dens_plugin.backbones.painn
import dens_plugin.backbones.schnet
import dens_plugin.backbones.se3_transformer
import dens_plugin.backbones.torchmd_et
from dens_plugin.backbones.neighbours import Neighbours, with_neighbours
from dens_plugin.fields import NEIGHBOURS, rows_of
from dens_plugin.objectives.dens import DeNS
from dens_plugin.padding.budgets import Budget
from dens_plugin.testing import EPOCH, cast, default_dtype, random_batch
from dens_plugin.training.loading import loader_search
from dens_plugin.training.losses import term, total_loss

ROUNDING = 1e-12
SEARCHED = {"loader_graph": True}
SIZES = (7, 4, 10)


def equiformer_v2(**changes):
    small = {key: MODEL[key] for key in MODEL if key != "name"}
    return dens_plugin.FlatEquiformerV2DeNS(**small | {"alpha_drop": 0.0, "drop_path_rate": 0.0} | changes)


def escn(**changes):
    small = {
        "max_neighbors": 10,
        "cutoff": 5.0,
        "num_layers": 1,
        "sphere_channels": 8,
        "hidden_channels": 8,
        "edge_channels": 8,
        "lmax_list": [1],
        "mmax_list": [1],
        "distance_resolution": 0.5,
    }
    return dens_plugin.FlatESCNDeNS(**small | changes)


def esen(heads=None, **changes):
    small = {
        "max_neighbors": 10,
        "max_num_elements": 90,
        "sphere_channels": 8,
        "lmax": 1,
        "mmax": 1,
        "cutoff": 4.0,
        "edge_channels": 8,
        "num_distance_basis": 8,
        "num_layers": 1,
        "hidden_channels": 8,
        "act_type": "gate",
        "mlp_type": "spectral",
    }
    heads = heads or {"energy": "dens_plugin.ESENEnergyHead", "forces": "dens_plugin.ESENForceHead"}
    return hydra("dens_plugin.ESENDeNS", heads | {"noise": "dens_plugin.ESENNoiseHead"}, **small | changes)


def hydra(backbone, heads, **settings):
    named = {name: {"module": module} for name, module in heads.items()}
    return HydraModel(backbone={"model": backbone, **settings}, heads=named, pass_through_head_outputs=True)


def light(name, forces, noise, **small):
    """Builds a network whose forces are vectors of their own or, without a head for them, gradients."""
    own = name if name.startswith("painn") else name.removesuffix("_dens")
    heads = {"energy": f"{own}_{'energy' if forces else 'gradient'}_head", "noise": noise}
    heads |= {"forces": f"{own}_{forces}_head"} if forces else {}

    def build(**changes):
        return hydra(f"{name}_plugin_backbone", heads, **small | changes)

    return build


PAINN = {"hidden_channels": 8, "num_layers": 2, "num_rbf": 8, "cutoff": 4.0, "use_pbc": False, "form": "paper"}
PAINN_NOISE = "painn_dens_noise_head"
ET = {"embedding_dimension": 8, "num_layers": 2, "num_heads": 2, "num_rbf": 8, "cutoff": 4.0}
SCHNET = {"hidden_channels": 8, "num_filters": 8, "num_interactions": 2, "num_gaussians": 8, "cutoff": 4.0}
EGNN = {"channels": 8, "num_layers": 2, "cutoff": 4.0, "max_neighbors": 40}
SE3 = {"channels": 4, "num_layers": 2, "num_degrees": 2, "value_divisor": 2, "cutoff": 4.0, "max_num_elements": 90}
EQUIFORMER = {
    "channels": [8, 4],
    "num_layers": 2,
    "num_heads": 2,
    "head_channels": [4, 2],
    "ffn_channels": [8, 4],
    "feature_channels": [16, 8],
    "cutoff": 4.0,
    "num_radial_basis": 8,
    "radial_channels": [8],
    "max_num_elements": 90,
}
LIGHT = {
    "PaiNN": light("painn_dens", "force", "painn_dens_noise_head", **PAINN),
    "PaiNN, gradients": light("painn_dens", "", "painn_dens_noise_head", **PAINN),
    "PaiNN, crystals": light(
        "painn_dens", "force", "painn_dens_noise_head", **PAINN | {"use_pbc": True, "max_neighbors": 12}
    ),
    "PaiNN, few neighbours": light("painn_dens", "force", "painn_dens_noise_head", **PAINN | {"max_neighbors": 4}),
    "ET": light("torchmd_et_dens", "", "torchmd_et_vector_head", **ET),
    "SchNet": light("schnet", "", "gradient_noise_head", **SCHNET),
    "EGNN": light("egnn_dens", "", "egnn_noise_head", **EGNN),
    "EGNN, crystals": light("egnn_dens", "vector", "egnn_noise_head", **EGNN | {"use_pbc": True}),
    "SE(3)-Transformer": light("se3_transformer_dens", "", "se3_transformer_noise_head", **SE3),
    "Equiformer": light("equiformer_dens", "", "equiformer_noise_head", **EQUIFORMER),
    "Equiformer, crystals": light("equiformer_dens", "", "equiformer_noise_head", **EQUIFORMER | {"use_pbc": True}),
}
MODELS = {
    "EquiformerV2": equiformer_v2,
    "EquiformerV2 by fairchem": lambda **changes: equiformer_v2(fast=False, **changes),
    "eSCN": escn,
    "eSCN by fairchem": lambda **changes: escn(fast=False, **changes),
    "eSEN": esen,
    "eSEN, gradients": lambda: esen({"energy_forces": "dens_plugin.ESENGradientHead"}, direct_forces=False),
    **LIGHT,
}


def loaded(model, objective=None, sizes=SIZES, dtype=torch.float64, batch=None):
    """A batch that an objective prepared, with the neighbours that a model reads; fairchem's search is in float32."""
    with default_dtype(torch.float32):
        batch = (objective or DeNS(prob=0.7)).prepare(random_batch(sizes) if batch is None else batch, EPOCH)
        return in_dtype(with_neighbours(batch, loader_search(model, SEARCHED)), dtype)


def clean(model, sizes=SIZES, dtype=torch.float64, seed=0):
    """A batch as for an evaluation, which no objective prepared."""
    with default_dtype(torch.float32):
        return in_dtype(with_neighbours(random_batch(sizes, seed=seed), loader_search(model, SEARCHED)), dtype)


def in_dtype(batch, dtype):
    """A batch with a record, in a precision."""
    record = batch[NEIGHBOURS]
    found = record.edge_index, record.cell_offsets, record.neighbors
    changed = cast(batch, dtype)
    changed[NEIGHBOURS] = Neighbours.of(changed, record.search, found)
    return changed


def roomy(batch, *, atoms=11, edges=70, structures=3, rows=9, incoming=23):
    """A budget with room for a batch and so much more; of a batch of single atoms energies might be of either."""
    need = Budget.of(batch)
    return Budget(
        need.atoms + atoms,
        need.edges + edges,
        need.structures + structures,
        {name: size + rows for name, size in need.rows.items()},
        {name: size + incoming for name, size in need.incoming.items() if name != "energy"},
        need.pairs + edges // 2 if need.pairs else 0,
    )


def loss_of(objective, outputs, batch):
    """As the trainer's: labels that are not normalised, and the objective's own outputs."""
    terms = []
    predictions, targets = objective.predictions(outputs, batch), objective.targets(batch)
    for output in (*objective.labels, *objective.outputs):
        is_own = output in objective.outputs
        prediction = predictions[output.name] if is_own else outputs[output.name]
        target = targets[output.name] if is_own else batch[output.name]
        rows = rows_of(batch)[output.name]
        prediction = prediction.view(len(rows.mask), -1)
        natoms = batch.natoms if output.level == "structure" else batch.natoms[batch.batch]
        loss = registry.get_loss_class(output.loss)()
        target = target.view(prediction.shape)
        terms.append(term(3.0, loss, prediction=prediction, target=target, rows=rows, natoms=natoms))
    return total_loss(terms)


def step_of(model, objective, batch):
    """Outputs, loss and gradients of all parameters of a training step."""
    torch.manual_seed(0)
    model.zero_grad()
    outputs = model(copy.copy(batch))
    loss = loss_of(objective, outputs, batch)
    loss.value.backward()
    return outputs, loss, {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}


def assert_same_step(found, expected):
    """To rounding, relative to the largest number or to one: vectors of single atoms are rounding themselves."""
    (outputs, loss, gradients), (known, known_loss, known_gradients) = found, expected
    assert outputs.keys() == known.keys()
    for name, value in known.items():
        scale = max(value.abs().max().item(), 1.0)
        assert (outputs[name][: len(value)] - value).abs().max() <= ROUNDING * scale, name
    assert loss.value.item() == pytest.approx(known_loss.value.item(), rel=ROUNDING)
    assert bool(loss.bad) == bool(known_loss.bad)
    scale = max(1.0, *(value.abs().max().item() for value in known_gradients.values()))
    for name, value in known_gradients.items():
        assert (gradients[name] - value).abs().max() <= ROUNDING * scale, name
