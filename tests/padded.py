"""Small networks, prepared batches and their losses, for tests of padding."""

from __future__ import annotations

import copy

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from samples import MODEL

import dens_plugin
from dens_plugin.backbones.neighbours import Neighbours, with_neighbours
from dens_plugin.fields import NEIGHBOURS, rows_of
from dens_plugin.objectives.dens import DeNS
from dens_plugin.testing import EPOCH, cast, default_dtype, random_batch
from dens_plugin.training.budgets import Budget
from dens_plugin.training.loading import loader_search
from dens_plugin.training.losses import term, total_loss

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


def esen(**changes):
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
    heads = {"energy": "dens_plugin.ESENEnergyHead", "forces": "dens_plugin.ESENForceHead"}
    return hydra("dens_plugin.ESENDeNS", heads | {"noise": "dens_plugin.ESENNoiseHead"}, **small | changes)


def hydra(backbone, heads, **settings):
    named = {name: {"module": module} for name, module in heads.items()}
    return HydraModel(backbone={"model": backbone, **settings}, heads=named, pass_through_head_outputs=True)


MODELS = {
    "EquiformerV2": equiformer_v2,
    "EquiformerV2 by fairchem": lambda **changes: equiformer_v2(fast=False, **changes),
    "eSCN": escn,
    "eSCN by fairchem": lambda **changes: escn(fast=False, **changes),
    "eSEN": esen,
}


def loaded(model, objective=None, sizes=SIZES, dtype=torch.float64, batch=None):
    """A batch that an objective prepared, with the neighbours that a model reads; fairchem's search is in float32."""
    with default_dtype(torch.float32):
        batch = (objective or DeNS(prob=0.7)).prepare(random_batch(sizes) if batch is None else batch, EPOCH)
        return in_dtype(with_neighbours(batch, loader_search(model, SEARCHED)), dtype)


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
