"""EquiformerV2 with DeNS: fairchem's backbone with a force encoding, its vector head twice, for forces and for noise.

EquiformerV2: Liao, Wood, Das and Smidt, arXiv:2306.12059. Parameters keep fairchem's names, so that its EquiformerV2
checkpoints load into backbone, energy and force head; the noise head is one more vector head.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.heads import EqV2VectorHead
from fairchem.core.models.equiformer_v2.so3 import SO3_Rotation
from torch import nn

from dens_plugin.backbones.empty_graph import allow_empty_graphs
from dens_plugin.backbones.inject import added_to_embedding
from dens_plugin.fields import NOISE, corruption_of, rows_of
from dens_plugin.nn.force_encoding import ForceEncoding

if TYPE_CHECKING:
    from fairchem.core.models.base import GraphData
    from torch_geometric.data import Batch


@registry.register_model("equiformer_v2_dens_plugin_backbone")
class EquiformerV2DeNS(EquiformerV2Backbone):
    """fairchem's ``equiformer_v2_backbone`` that encodes the forces of a batch's corruption record.

    A batch without a record, as at inference, goes through the host's forward alone, and no autograd graph is built
    under ``torch.no_grad()``.

    Args:
        *args: as the host's.
        **kwargs: as the host's.

    Raises:
        ValueError: for more than one resolution, which DeNS was never defined for.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.num_resolutions != 1:
            raise ValueError(f"DeNS needs one resolution, got lmax_list={self.lmax_list}; give a single degree")
        self.direct_forces = True  # tells the host's `conditional_grad` that no position gradient will be taken
        self.force_embedding = ForceEncoding(self.lmax_list[0], self.sphere_channels, self.weight_init)
        allow_empty_graphs(self)

    def forward(self, data: Batch) -> dict[str, Any]:
        """Node embeddings (N, L, C) and graph of a batch, as the host's."""
        corruption = corruption_of(data)
        if corruption is None:
            return super().forward(data)
        encoding = self.force_embedding(corruption.forces.to(data.pos.dtype))
        if gp_utils.initialized():
            encoding = gp_utils.scatter_to_model_parallel_region(encoding, dim=0)
        with added_to_embedding(self.edge_degree_embedding, encoding):
            return super().forward(data)

    def _init_edge_rot_mat(
        self, data: Batch, edge_index: torch.Tensor, edge_distance_vec: torch.Tensor
    ) -> torch.Tensor:
        """(E, 3, 3) edge frames; one frame for a graph without edges, as `allow_empty_graphs` needs."""
        if edge_index.shape[1] == 0:
            return torch.eye(3, dtype=edge_distance_vec.dtype, device=edge_distance_vec.device)[None]
        return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)


@registry.register_model("equiformer_v2_dens_force_head")
class ForceHead(EqV2VectorHead):
    """The host's vector head, computed only where the prediction counts.

    The output at an atom needs no more than its incoming edges, so the block runs on the edges that end at atoms of
    ``rows``; the other rows are zero. Without ``rows``, as at inference, every atom counts.
    """

    def __init__(self, backbone: EquiformerV2Backbone, output_name: str = "forces") -> None:
        super().__init__(backbone, output_name)
        self._backbone_rotation = [backbone.SO3_rotation]  # in a list, so that it is not registered a second time
        # Rotations of its own, as the backbone's hold one matrix for every edge. The state dict keeps its keys.
        self.force_block.SO3_rotation = nn.ModuleList(SO3_Rotation(lmax) for lmax in backbone.lmax_list)
        allow_empty_graphs(self)

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{output_name: (N, 3)} in normalised units."""
        rows = rows_of(data).get(self.output_name)
        graph = emb["graph"]
        edges = slice(None) if rows is None else rows.mask[graph.edge_index[1]].nonzero().view(-1)
        is_empty = rows is not None and len(edges) == 0
        if is_empty and gp_utils.initialized():  # a share of the atoms of which none counts; its ranks keep in step
            edges, is_empty = slice(None), False
        self._take_rotations(slice(1) if is_empty else edges)
        return super().forward(data, {**emb, "graph": _edge_subset(graph, edges)})

    def _take_rotations(self, edges: slice | torch.Tensor) -> None:
        for own, shared in zip(self.force_block.SO3_rotation, self._backbone_rotation[0], strict=True):
            own.device, own.dtype = shared.device, shared.dtype
            own.wigner, own.wigner_inv = shared.wigner[edges], shared.wigner_inv[edges]


@registry.register_model("equiformer_v2_dens_noise_head")
class NoiseHead(ForceHead):
    """A second vector head, for the noise of the corrupted atoms in units of its scale; does not run at inference."""

    def __init__(self, backbone: EquiformerV2Backbone, output_name: str = NOISE) -> None:
        with torch.random.fork_rng(devices=[]):  # heads built after this one start as in a model without DeNS
            super().__init__(backbone, output_name)

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{output_name: (N, 3)}, or nothing where no noise is asked for."""
        return super().forward(data, emb) if self.output_name in rows_of(data) else {}


@registry.register_model("equiformer_v2_dens")
class FlatEquiformerV2DeNS(HydraModel):
    """Backbone and three heads in one, with the flat hyper-parameters of the authors' ``equiformer_v2_dens``.

    Args:
        otf_graph: whether edges are computed on the fly.
        use_tp_reparam: of the authors' layout; only False exists in fairchem.
        use_noise_schedule_sigma_encoding: of the authors' layout; only False, which the paper found better.
        **backbone: hyper-parameters of fairchem's EquiformerV2 backbone.

    Attributes:
        backbone_class: the class that takes them.

    Raises:
        ValueError: for an option of the authors' code that fairchem's network lacks.
    """

    backbone_class = EquiformerV2DeNS

    def __init__(
        self,
        *,
        otf_graph: bool = True,
        use_tp_reparam: bool = False,
        use_noise_schedule_sigma_encoding: bool = False,
        **backbone: Any,
    ) -> None:
        if use_tp_reparam or use_noise_schedule_sigma_encoding:
            raise ValueError(
                "use_tp_reparam and use_noise_schedule_sigma_encoding are not supported and must be False or left out"
            )
        super().__init__(
            backbone={"model": "dens_plugin.EquiformerV2DeNS", "otf_graph": otf_graph, **backbone},
            heads={
                "energy": {"module": "equiformerV2_scalar_head"},
                "forces": {"module": "dens_plugin.ForceHead"},
                "noise": {"module": "dens_plugin.NoiseHead"},
            },
            otf_graph=otf_graph,
            pass_through_head_outputs=True,
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names without weight decay by EquiformerV2's own rule, as in the authors' runs."""
        return EquiformerV2Backbone.no_weight_decay(self)


def _edge_subset(graph: GraphData, edges: slice | torch.Tensor) -> GraphData:
    """The graph with only ``edges``, in what a head reads of it."""
    return dataclasses.replace(graph, edge_index=graph.edge_index[:, edges], edge_distance=graph.edge_distance[edges])
