"""Whether a training step synchronises with a GPU: on the device ``meta``, which passes for a GPU without Triton.

A step copies nothing from the CPU, and asks nothing about a batch whose neighbours a loader found. Where the model is
to find them, which waits by itself, it also asks how many atoms and edges count for each head, and eSCN how its edges
are shared out. Everything else that would wait is an error.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from no_waiting import copies_from_host
from test_equiformer_v2 import flat
from test_equiformer_v2_fast import PAPER
from test_escn_fast import both
from two_paths import a_corrupted_batch

from dens_plugin.backbones.neighbours import with_neighbours
from dens_plugin.fields import ROWS
from dens_plugin.training.loading import loader_search


class Gpu(NamedTuple):
    device: torch.device
    questions: list[str]


@pytest.fixture
def gpu(monkeypatch):
    """The device, and the questions that it was asked."""
    questions = []
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.is_meta), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know the device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    nonzero = torch.Tensor.nonzero

    def half(mask, **options):
        if not mask.is_meta:
            return nonzero(mask, **options)
        questions.append("how many count")
        return torch.arange(len(mask) // 2, device=mask.device)[:, None]

    monkeypatch.setattr(torch.Tensor, "nonzero", half)
    return Gpu(torch.device("meta"), questions)


def moved(record, device):
    """A record of tensors on a device."""
    if isinstance(record, torch.Tensor):
        return record.to(device)
    if isinstance(record, dict):
        return {key: moved(value, device) for key, value in record.items()}
    return type(record)(*(moved(value, device) for value in record)) if isinstance(record, tuple) else record


def moved_batch(batch, device):
    out = batch.clone()
    for key in list(batch.keys()):
        out[key] = moved(batch[key], device)
    return out


def moved_graph(graph, device):
    return type(graph)(**{field.name: moved(getattr(graph, field.name), device) for field in dataclasses.fields(graph)})


CHANGES = {"grids": {}, "gates": {"use_gate_act": True, "use_s2_act_attn": False}}
BOUNDARIES = {"periodic": {}, "open": {"use_pbc": False}}


def asked(model, gpu):
    """The questions of a step on a graph that was made before."""
    batch = a_corrupted_batch()
    model.train()(batch)  # which makes fairchem's grids
    graph = moved_graph(model.backbone.generate_graph(batch), gpu.device)
    model.backbone.generate_graph = lambda *_, **__: dataclasses.replace(graph)
    return asked_in_step(model, moved_batch(batch, gpu.device), gpu)


def loaded(model):
    """A batch as the loader makes it for a model."""
    batch = a_corrupted_batch()
    batch[ROWS] = {name: rows.listed() for name, rows in batch[ROWS].items()}
    return with_neighbours(batch, loader_search(model, {"loader_graph": True}))


def asked_with_record(model, gpu):
    """The questions of a step, its graph included, on a batch as the trainer moves it."""
    batch = loaded(model)
    model.train()(batch)
    return asked_in_step(model, batch.to(gpu.device), gpu)


def asked_in_step(model, batch, gpu):
    """The questions of a step that copies nothing from the CPU."""
    model = model.to(gpu.device)
    for module in model.modules():  # eSCN's grids are plain attributes
        plain = {name: value for name, value in vars(module).items() if torch.is_tensor(value)}
        vars(module).update(moved(plain, gpu.device))

    def step():
        gpu.questions.clear()
        model.zero_grad()
        sum(out.sum() for out in model(batch).values()).backward()

    assert not copies_from_host(step)
    assert all(parameter.grad is not None for parameter in model.backbone.parameters() if parameter.requires_grad)
    return gpu.questions


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_equiformer_v2(gpu, changes):
    assert asked(flat(**PAPER | changes), gpu) == 4 * ["how many count"]  # atoms and edges, for forces and noise


@pytest.mark.parametrize("changes", BOUNDARIES.values(), ids=BOUNDARIES)
def test_equiformer_v2_with_the_loaders_record(gpu, changes):
    assert asked_with_record(flat(**PAPER | changes), gpu) == []


@pytest.mark.parametrize("changes", BOUNDARIES.values(), ids=BOUNDARIES)
def test_escn_with_the_loaders_record(gpu, changes):
    _, model = both(**changes)
    assert asked_with_record(model, gpu) == []


def test_escn(gpu, monkeypatch):
    _, model = both()
    num_edges = model.backbone.generate_graph(a_corrupted_batch()).edge_index.shape[1]

    def counts(tensor):
        if not tensor.is_meta:
            return tolist(tensor)
        gpu.questions.append("how many edges at each atom")
        ends, atoms = tensor.shape
        return [[num_edges // atoms + (atom < num_edges % atoms) for atom in range(atoms)]] * ends

    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", counts)
    assert asked(model, gpu) == ["how many edges at each atom", *(2 * ["how many count"])]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model_of", [lambda: flat(**PAPER), lambda: both()[1]], ids=["equiformer_v2", "escn"])
def test_torch_finds_no_waiting(model_of):
    """By torch's own watch, for a step after the first, in which kernels are compiled and constants made."""
    model = model_of().cuda().train()
    batch = loaded(model).to("cuda")
    for mode in ("default", "error"):
        model.zero_grad()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            sum(out.sum() for out in model(batch).values()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
