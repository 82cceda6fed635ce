"""Two ranks over gloo: the same noise, the same gradients and the same losses as one rank."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from fairchem.core.common import gp_utils
from rank_runs import end_of_rank
from samples import MODEL
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

import dens_plugin
from dens_plugin.fields import NOISE, ROWS, Rows, rows_of
from dens_plugin.objectives.dens import DeNS
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.testing import random_structure
from dens_plugin.training.losses import term, total_loss

STRUCTURES = [random_structure(4 + 3 * index, seed=index, sid=index) for index in range(5)]
EPOCH = StructureRandom(seed=1, epoch=0)
SETTINGS = {key: value for key, value in MODEL.items() if key != "name"} | {"alpha_drop": 0.0, "drop_path_rate": 0.0}


def prepared(structures, objective):
    return objective.prepare(Batch.from_data_list(structures), EPOCH)


def loss_of(model, batch, objective):
    """The trainer's loss with constant frames, so that it is a function of the batch alone."""
    out = model(batch)
    targets = {"energy": batch.energy[:, None], "forces": batch.forces, **objective.targets(batch)}
    out["energy"] = out["energy"][:, None]
    norm = {"energy": lambda p, t, _: (p - t).abs(), "forces": vector_error, NOISE: vector_error}
    atoms = batch.natoms[batch.batch]
    return total_loss(
        [
            term(
                weight,
                norm[name],
                prediction=out[name],
                target=targets[name],
                rows=rows_of(batch)[name],
                natoms=batch.natoms if name == "energy" else atoms,
            )
            for name, weight in (("energy", 2.0), ("forces", 10.0), (NOISE, 5.0))
        ]
    ).value


def vector_error(prediction, target, _):
    return (prediction - target).norm(dim=-1)


def build():
    torch.manual_seed(0)
    model = dens_plugin.FlatEquiformerV2DeNS(**SETTINGS, use_gate_act=True)
    return model.eval()


def rank_main(rank, world_size, port, share, objective, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    model = DistributedDataParallel(build())
    batch = prepared([STRUCTURES[index] for index in share[rank]], objective)
    loss = loss_of(model, batch, objective)
    loss.backward()
    gradients = {name: value.grad for name, value in model.module.named_parameters()}
    torch.save({"loss": loss.detach(), "gradients": gradients, "pos": batch.pos}, f"{folder}/{rank}.pt")
    end_of_rank()


def graph_parallel_main(rank, world_size, port, objective, counted, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    gp_utils.setup_gp({"gp_gpus": world_size, "distributed_backend": "gloo"})
    batch = counting(prepared(STRUCTURES, objective), counted)
    out = build()(batch)
    torch.save({name: value.detach() for name, value in out.items()}, f"{folder}/{rank}.pt")
    end_of_rank()


def counting(batch, atoms):
    """The batch with forces asked for only of some atoms."""
    mask = torch.zeros_like(batch.batch, dtype=torch.bool)
    mask[atoms] = True
    batch[ROWS] = {**batch[ROWS], "forces": Rows(mask, mask.sum())}
    return batch


@pytest.mark.parametrize("counted", [slice(None), slice(3)], ids=["all atoms", "atoms of the first rank only"])
def test_ranks_that_share_a_graph_predict_as_one(tmp_path, counted):
    objective = DeNS(prob=0.6)
    arguments = (2, free_port(), objective, counted, str(tmp_path))
    mp.start_processes(graph_parallel_main, arguments, nprocs=2, start_method="fork")
    batch = counting(prepared(STRUCTURES, objective), counted)
    expected = build()(batch)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(found["energy"], expected["energy"], atol=1e-5)
        for name in ("forces", NOISE):
            rows = batch[ROWS][name].mask
            assert rows.any()
            assert torch.allclose(found[name][rows], expected[name][rows], atol=1e-5), name


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("prob", "denominators"), [(0.6, "joint"), (0.6, "own"), (0.0, "joint")])
def test_two_ranks_have_the_gradients_of_one(tmp_path, prob, denominators):
    """Shares of unequal size: averaging means over ranks would be wrong."""
    objective = DeNS(prob=prob, denominators=denominators)
    share = [[0, 1, 2, 3], [4]]
    arguments = (2, free_port(), share, objective, str(tmp_path))
    mp.start_processes(rank_main, arguments, nprocs=2, start_method="fork")  # spawn would import everything again
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model, batch = build(), prepared(STRUCTURES, objective)
    loss = loss_of(model, batch, objective)
    loss.backward()
    assert torch.equal(torch.cat([rank["pos"] for rank in ranks]), batch.pos)
    assert torch.allclose(sum(rank["loss"] for rank in ranks) / 2, loss.detach(), rtol=1e-5)
    for name, value in model.named_parameters():
        for rank in ranks:
            assert torch.allclose(rank["gradients"][name], value.grad, rtol=1e-3, atol=1e-5), name
