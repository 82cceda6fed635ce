"""Errors of outputs and gradients against float64, of networks that share weights, graph and edge frames."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import torch
from contestants import build_one, loss
from fairchem.core.models.base import GraphData
from modes import Mode
from sizes import Settings
from structures import Sample
from torch import nn
from torch_geometric.data import Batch

from dens_plugin.fields import rows_of
from dens_plugin.testing import default_dtype

_LOSS_SCALE = 1024.0  # of fp16 gradients; fairchem's scaler finds a power of two like this one
_NEGLIGIBLE = 1e-6  # share of the whole gradient below which a parameter's own error says nothing

Tensors = dict[str, torch.Tensor]


class Exact(NamedTuple):
    """The reference, and what others must share with it.

    Attributes:
        settings: hyper-parameters of the backbone.
        batch: corrupted, in float32.
        state: weights.
        graph: neighbours, with the distances of float32 positions.
        frames: (E, 3, 3) of the edges.
        outputs: of the rows that count.
        gradients: of all parameters.
    """

    settings: Settings
    batch: Batch
    state: Tensors
    graph: GraphData
    frames: torch.Tensor
    outputs: Tensors
    gradients: Tensors


def reference(settings: Settings, sample: Sample, device: str) -> Exact:
    """Fairchem's layers in float64."""
    torch.manual_seed(0)
    network = build_one("equiformer_v2", "ours_host", settings, device, "fp32").eval()
    state = copy.deepcopy(network.state_dict())
    backbone, batch = network.double().backbone, _cast(sample.corrupted, torch.float64)
    is_strict = backbone.enforce_max_neighbors_strictly
    graph = backbone.generate_graph(sample.corrupted, enforce_max_neighbors_strictly=is_strict)  # float32 is all it can
    graph = _graph_like(graph, torch.float64)
    frames = backbone._init_edge_rot_mat(batch, graph.edge_index, graph.edge_distance_vec)
    _share(network, graph, frames)
    outputs, gradients = _evaluated(network, batch, Mode("float64"))
    return Exact(settings, sample.corrupted, state, graph, frames, outputs, gradients)


def relative_errors(exact: Exact, name: str, mode: Mode) -> dict[str, float]:
    """Quantity -> ||x - x64|| / ||x64|| of a contestant that has the parameter names of ``ours``."""
    network = build_one("equiformer_v2", name, exact.settings, str(exact.batch.pos.device), mode.key).eval()
    network.load_state_dict(exact.state)
    _share(network, exact.graph, exact.frames)
    outputs, gradients = _evaluated(network, exact.batch, mode)
    found = {key: _relative(outputs[key], value) for key, value in exact.outputs.items()}
    return found | {
        "gradient": _relative(_flat(gradients), _flat(exact.gradients)),
        "worst parameter's gradient": _worst(gradients, exact.gradients),
    }


def _evaluated(network: nn.Module, batch: Batch, mode: Mode) -> tuple[Tensors, Tensors]:
    """Outputs of the rows that count, and the loss's gradients, both in float64."""
    scale = _LOSS_SCALE if mode.amp else 1.0
    with default_dtype(batch.pos.dtype), mode.products():
        with mode.autocast():
            outputs = network(batch)
            found = loss(outputs, batch)
        (scale * found).backward()
    counted = {name: outputs[name].detach().double()[rows.mask] for name, rows in rows_of(batch).items()}
    gradients = {name: parameter.grad.double() / scale for name, parameter in network.named_parameters()}
    return counted, gradients


def _share(network: nn.Module, graph: GraphData, frames: torch.Tensor) -> None:
    """Let a backbone find this graph and these frames, which are random, rather than its own."""
    backbone = network.backbone
    backbone.generate_graph = lambda data, **_: _graph_like(graph, data.pos.dtype)
    backbone._init_edge_rot_mat = _Frames(backbone._init_edge_rot_mat, frames)


class _Frames:
    """Calls the network's own method, which may note what it was given, and returns other frames."""

    def __init__(self, method: Any, frames: torch.Tensor) -> None:
        self._method = method
        self._frames = frames

    def __call__(self, data: Batch, edge_index: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        self._method(data, edge_index, vectors)
        return self._frames.to(vectors.dtype)


def _graph_like(graph: GraphData, dtype: torch.dtype) -> GraphData:
    """A new graph, since the backbone writes into the one it gets."""
    tensors = {field.name: getattr(graph, field.name) for field in dataclasses.fields(graph)}
    return GraphData(**{name: _cast_tensor(value, dtype) for name, value in tensors.items()})


def _cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with floating-point numbers, those of its records too, in another type."""
    return copy.copy(batch).apply(lambda tensor: _cast_tensor(tensor, dtype))


def _cast_tensor(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _worst(found: Tensors, exact: Tensors) -> float:
    """The largest error of a parameter that matters."""
    limit = _NEGLIGIBLE * _flat(exact).norm()
    return max(_relative(found[name], value) for name, value in exact.items() if value.norm() > limit)
